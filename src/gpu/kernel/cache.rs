//! Kernels by identity: each is written, parsed and reflected once, and built once by the device that owns the cache. Its
//! handles and its dry copies share it.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::Result;
use crate::gpu::context::lock;

use super::{Dimensions, Kernel, KernelId, Reflection};

/// Kernels read, after each of which the modules that no device has built are dropped: more than a model has. They take
/// megabytes.
const MAX_MODULES: u64 = 64;

/// A compute pipeline, and the layout of its bindings.
pub(in crate::gpu) type Built = (wgpu::ComputePipeline, wgpu::BindGroupLayout);

/// A kernel that naga has read, and that the driver has built if there is a device.
#[derive(Debug)]
pub(in crate::gpu) struct Pipeline {
    pub(in crate::gpu) id: KernelId,
    /// The printed name.
    pub(in crate::gpu) name: Arc<str>,
    shared: Arc<OfText>,
}

impl Deref for Pipeline {
    type Target = OfText;

    fn deref(&self) -> &OfText {
        &self.shared
    }
}

/// A kernel without its name. Kernels that differ only in how many parts their work is cut into share one.
#[derive(Debug)]
pub(in crate::gpu) struct OfText {
    /// Unique in the cache.
    pub(in crate::gpu) number: u64,
    /// Under the name of the first of them.
    pub(in crate::gpu) kernel: Kernel,
    pub(in crate::gpu) reflection: Reflection,
    /// For the driver. Parsing takes most of the time before a first step, since naga 30 passes over all expressions of a
    /// function for each new one; what a dry copy has parsed the device need not parse again.
    module: Mutex<Option<naga::Module>>,
    built: OnceLock<Built>,
    /// Held while the kernel is built, so that two threads do not both do it.
    building: Mutex<()>,
}

impl OfText {
    /// The driver's pipeline; `None` on a dry device.
    pub(in crate::gpu) fn built(&self) -> Option<&Built> {
        self.built.get()
    }

    /// The parsed text for the driver: the one that was kept, if it still is.
    fn module(&self) -> Result<naga::Module> {
        let kept = lock(&self.module).take();
        kept.map_or_else(|| self.kernel.parse(), Ok)
    }

    /// Builds the kernel, if that was not yet done.
    pub(in crate::gpu) fn build(&self, build: impl FnOnce(&Self, naga::Module) -> Result<Built>) -> Result<()> {
        let _held = lock(&self.building);
        if self.built.get().is_none() {
            let built = build(self, self.module()?)?;
            let _ = self.built.set(built);
        }
        Ok(())
    }
}

/// The place of a kernel in the cache; empty until its text is read.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// The cache.
#[derive(Debug, Default)]
pub(in crate::gpu) struct Kernels {
    by_id: Mutex<HashMap<KernelId, Slot>>,
    by_text: Mutex<HashMap<Text, Arc<OfText>>>,
    next: AtomicU64,
}

/// All of a kernel but its name. Values of constants by their bits.
type Text = (String, &'static str, Vec<(&'static str, u64)>, Option<u32>, Option<Dimensions>);

fn text_of(kernel: &Kernel) -> Text {
    let Kernel { name: _, source, entry, constants, subgroup_size, dimensions } = kernel;
    let constants = constants.iter().map(|(name, value)| (*name, value.to_bits())).collect();
    (source.clone(), entry, constants, *subgroup_size, *dimensions)
}

impl Kernels {
    /// Returns the kernel; the first time its text is written and read.
    pub(in crate::gpu) fn get(&self, id: &KernelId) -> Result<Arc<Pipeline>> {
        let slot = {
            let mut by_id = lock(&self.by_id);
            match by_id.get(id) {
                Some(slot) => Arc::clone(slot),
                None => Arc::clone(by_id.entry(id.clone()).or_default()),
            }
        };
        let mut slot = lock(&slot);
        if let Some(pipeline) = &*slot {
            return Ok(Arc::clone(pipeline));
        }
        let kernel = id.kernel();
        let (name, text) = (Arc::from(kernel.name.as_str()), text_of(&kernel));
        let known = lock(&self.by_text).get(&text).cloned();
        let shared = match known {
            Some(shared) => shared,
            None => Arc::clone(lock(&self.by_text).entry(text).or_insert(self.read(kernel)?)),
        };
        let pipeline = Arc::new(Pipeline { id: id.clone(), name, shared });
        *slot = Some(Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn read(&self, kernel: Kernel) -> Result<Arc<OfText>> {
        let (reflection, module) = kernel.read()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number > 0 && number.is_multiple_of(MAX_MODULES) {
            self.forget_modules();
        }
        let module = Mutex::new(Some(module));
        Ok(Arc::new(OfText { number, kernel, reflection, module, built: OnceLock::new(), building: Mutex::default() }))
    }

    /// True if nothing was read yet.
    pub(in crate::gpu) fn is_empty(&self) -> bool {
        lock(&self.by_id).is_empty()
    }

    /// True if a device has built one of the kernels.
    pub(in crate::gpu) fn is_built(&self) -> bool {
        let slots: Vec<Slot> = lock(&self.by_id).values().cloned().collect();
        slots.iter().any(|slot| lock(slot).as_ref().is_some_and(|pipeline| pipeline.built().is_some()))
    }

    /// Drops the modules that no device has asked for.
    fn forget_modules(&self) {
        for slot in lock(&self.by_id).values() {
            // a slot that is locked is being filled
            if let Ok(slot) = slot.try_lock()
                && let Some(pipeline) = &*slot
            {
                *lock(&pipeline.module) = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernel::id::{Arithmetic, Generator};
    use crate::gpu::{OpPass, kernel::Purpose};
    use std::sync::atomic::AtomicUsize;

    /// How often texts of `Counted<true>` were written, which one test alone makes.
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);

    #[derive(Debug, PartialEq, Eq, Hash)]
    struct Counted<const BY_TEST: bool>(u32);

    impl<const BY_TEST: bool> Generator for Counted<BY_TEST> {
        fn family(&self) -> String {
            "counted".into()
        }
        fn name(&self) -> String {
            format!("counted.{}", self.0)
        }
        fn text(&self) -> String {
            WRITTEN.fetch_add(usize::from(BY_TEST), Ordering::Relaxed);
            format!("@compute @workgroup_size({}) fn main() {{}}", self.0)
        }
        fn arithmetic(&self) -> Arithmetic {
            Arithmetic::F32
        }
    }

    fn id<const BY_TEST: bool>(of: u32) -> KernelId {
        KernelId::generated(OpPass::new("counted", "forward"), "forward", Purpose::Elements, Counted::<BY_TEST>(of))
    }

    #[test]
    fn a_text_is_written_once_for_each_identity() {
        let kernels = Kernels::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (1..=3).for_each(|of| drop(kernels.get(&id::<true>(of)).expect("read"))));
            }
        });
        assert_eq!(WRITTEN.load(Ordering::Relaxed), 3);
        assert_eq!(kernels.get(&id::<true>(2)).expect("read").reflection.workgroup_size, [2, 1, 1]);
        // a text that is wrong is no entry: its fault comes again
        let wrong = KernelId::probe("wrong", "main", "fn main(".into());
        for _ in 0..2 {
            assert!(kernels.get(&wrong).expect_err("wrong").to_string().contains("wrong"));
        }
    }

    #[test]
    fn kernels_of_one_text_share_what_is_read_and_built() {
        let kernels = Kernels::default();
        let get = |name: &str, text: &str| kernels.get(&KernelId::probe(name, "main", text.into())).expect("read");
        let text = "@compute @workgroup_size(7) fn main() {}";
        let [a, b, other] = [get("a", text), get("b", text), get("c", &text.replace('7', "8"))];
        assert_eq!([&*a.name, &*b.name], ["a", "b"]);
        assert!(a.number == b.number && Arc::ptr_eq(&a.shared, &b.shared) && other.number != a.number);
        // an identity of its own each
        assert!(!Arc::ptr_eq(&a, &b) && a.id != b.id);
    }

    #[test]
    fn modules_are_kept_for_the_device_and_dropped_when_there_are_many() {
        let kernels = Kernels::default();
        let first = kernels.get(&id::<false>(1)).expect("read");
        assert!(lock(&first.module).is_some());
        (2..=MAX_MODULES as u32 + 1).for_each(|of| drop(kernels.get(&id::<false>(of)).expect("read")));
        assert!(lock(&first.module).is_none());
        assert!(first.module().is_ok(), "parsed again");
    }
}
