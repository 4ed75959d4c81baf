//! The current phase of a run, shared with the thread that answers signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Defines the phases. Each has a name and the run's reaction to a signal, worded as the end of a sentence.
macro_rules! phases {
    ($($(#[doc = $doc:literal])+ $phase:ident $name:literal $answer:literal;)+) => {
        /// A phase of a run.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Phase {
            $($(#[doc = $doc])+ $phase,)+
        }

        impl Phase {
            const ALL: &[Self] = &[$(Self::$phase),+];

            /// Returns the phase in words: `reading data and weights`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$phase => $name,)+
                }
            }

            /// Returns the run's reaction to a signal in this phase.
            #[must_use]
            pub fn answer(self) -> &'static str {
                match self {
                    $(Self::$phase => $answer,)+
                }
            }
        }
    };
}

phases! {
    /// Data and weights are read; no device is open yet.
    Reading "reading data and weights" "ended while reading data and weights, with nothing to save";
    /// The driver opens the device.
    Opening "opening the device" "ended while opening the device, with nothing to save";
    /// The step is recorded; kernels are parsed and the driver compiles them.
    Compiling "compiling kernels" "ended while compiling kernels, with nothing to save";
    /// The first weights are copied to the device.
    Uploading "uploading weights" "ended while uploading weights, with nothing to save";
    /// Steps are computed.
    Training "training" "finishing the micro-steps in flight, then saving";
    /// The validation loss is computed.
    Validating "validating" "stopping after this validation batch, then saving";
    /// HellaSwag's questions are scored.
    ScoringHellaSwag "measuring HellaSwag" "stopping after this part of HellaSwag's questions, then saving";
    /// A sample is generated.
    Sampling "writing a sample" "stopping after this token of the sample, then saving";
    /// The weights are copied from the device for a checkpoint, or the run waits for a checkpoint.
    Saving "saving a checkpoint" "stopping once the checkpoint is saved";
    /// The model is saved at the end of a run.
    SavingModel "saving the model" "stopping once the model is saved";
    /// The run waits because nothing can be written.
    Waiting "waiting for the disk" "ending without saving, because the disk does not accept writes; earlier checkpoints are kept";
}

impl Phase {
    /// Returns whether nothing has been computed yet that could be saved. A process may end in such a phase at any time, as in a
    /// power cut.
    #[must_use]
    pub fn has_nothing_to_save(self) -> bool {
        matches!(self, Self::Reading | Self::Opening | Self::Compiling | Self::Uploading)
    }
}

/// The current phase of a run, and its progress, shared between threads. Starts as [`Phase::Reading`].
#[derive(Debug, Clone, Default)]
pub struct CurrentPhase(Arc<Now>);

#[derive(Debug, Default)]
struct Now {
    phase: AtomicU8,
    done: AtomicUsize,
    total: AtomicUsize,
}

/// Returns to the previous phase when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct PhaseGuard {
    current: CurrentPhase,
    before: Phase,
}

impl CurrentPhase {
    /// Returns the current phase.
    #[must_use]
    pub fn get(&self) -> Phase {
        Phase::ALL[usize::from(self.0.phase.load(Ordering::SeqCst)).min(Phase::ALL.len() - 1)]
    }

    /// Notes that `done` of `total` parts of the phase are done.
    pub fn reach(&self, done: usize, total: usize) {
        self.0.done.store(done, Ordering::SeqCst);
        self.0.total.store(total, Ordering::SeqCst);
    }

    /// Returns how many parts of the phase are done, of how many, if that is known.
    #[must_use]
    pub fn reached(&self) -> Option<(usize, usize)> {
        let (done, total) = (self.0.done.load(Ordering::SeqCst), self.0.total.load(Ordering::SeqCst));
        (total > 0).then(|| (done.min(total), total))
    }

    /// Begins a phase. It lasts until another begins.
    pub fn set(&self, phase: Phase) {
        self.reach(0, 0);
        self.0.phase.store(phase as u8, Ordering::SeqCst);
        log::info!("phase: {}", phase.name());
    }

    /// Begins a phase within the current one, until the guard is dropped.
    pub fn enter(&self, phase: Phase) -> PhaseGuard {
        let before = self.get();
        self.set(phase);
        PhaseGuard { current: self.clone(), before }
    }
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        self.current.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_nest_and_are_seen_from_other_threads() {
        let current = CurrentPhase::default();
        assert_eq!(current.get(), Phase::Reading);
        current.set(Phase::Training);
        {
            let _saving = current.enter(Phase::Saving);
            let _waiting = current.enter(Phase::Waiting);
            let seen = current.clone();
            assert_eq!(std::thread::spawn(move || seen.get()).join().unwrap(), Phase::Waiting);
        }
        assert_eq!(current.get(), Phase::Training);
    }

    #[test]
    fn a_new_phase_begins_at_nothing() {
        let current = CurrentPhase::default();
        assert_eq!(current.reached(), None);
        let validating = current.enter(Phase::Validating);
        current.reach(3, 8);
        assert_eq!(current.reached(), Some((3, 8)));
        drop(validating);
        assert_eq!(current.reached(), None);
    }

    #[test]
    fn an_answer_says_whether_the_run_is_saved() {
        for phase in Phase::ALL {
            let answer = phase.answer();
            assert_eq!(answer.ends_with("with nothing to save"), phase.has_nothing_to_save(), "{answer}");
            assert!(answer.contains("sav"), "{answer}");
        }
    }
}
