//! A device that is lost, or out of memory, at any of its calls.

use super::*;

/// Numbers of a device's calls, by kind.
type Calls = std::sync::Arc<[std::sync::atomic::AtomicU64; 3]>;

/// A device whose calls are counted.
fn counted(calls: &Cell<Option<Calls>>) -> Result<Gpu> {
    let gpu = open_anew()?;
    gpu.fail_at(None);
    calls.set(Some(gpu.counters()));
    Ok(gpu)
}

/// A device with a fault, and after it one without.
fn faulty(at: (Call, u64), opened: &Cell<u32>) -> impl Fn() -> Result<Gpu> {
    move || {
        if opened.replace(opened.get() + 1) > 0 {
            return open();
        }
        let gpu = open_anew()?;
        gpu.fail_at(Some(at));
        Ok(gpu)
    }
}

/// A device that is lost has to build all kernels. So this test takes only some of the calls; run by hand with
/// `--ignored` for each call.
#[test]
fn a_device_lost_at_a_submission_is_opened_again() {
    lose_at(Call::Submit, SOME);
}

#[test]
fn a_device_lost_at_a_mapping_is_opened_again() {
    lose_at(Call::Map, SOME);
}

#[test]
#[ignore = "takes minutes on software Vulkan"]
fn a_device_lost_at_any_call_is_opened_again() {
    lose_at(Call::Submit, 1);
    lose_at(Call::Map, 1);
}

/// Whichever of several devices is lost, at whatever call, all are reopened, and the run leaves the same as an undisturbed one.
#[test]
fn a_device_lost_among_several_is_opened_again_with_all() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let short = |settings: &mut Settings| {
        (settings.train.steps, settings.run.val_every) = (3, 2);
        settings.run.sample_every = 0;
        (settings.data.ranks, settings.run.device_count) = (2, 2);
        settings.train.tokens_per_step = 2 * settings.train.batch * settings.train.context;
    };
    let several = |faults: &[Option<(Call, u64)>]| -> Result<Vec<Gpu>> {
        let gpus: Vec<Gpu> = faults.iter().map(|_| open_anew()).collect::<Result<_>>()?;
        gpus.iter().zip(faults).for_each(|(gpu, fault)| gpu.fail_at(*fault));
        Ok(gpus)
    };
    let calls = Cell::new(0);
    train_on(dir, "whole", &short, &|| several(&[None; 1]), &|| None).0.unwrap();
    let counters = std::cell::RefCell::new(Vec::new());
    let counted = || {
        let gpus = several(&[None; 2])?;
        counters.replace(gpus.iter().map(Gpu::counters).collect());
        Ok(gpus)
    };
    train_on(dir, "counted", &short, &counted, &|| None).0.unwrap();
    same(dir, "counted", "two devices");
    let most =
        |device: usize, call: Call| counters.borrow()[device][call as usize].load(std::sync::atomic::Ordering::SeqCst);
    for (device, call, share) in [(1, Call::Submit, 3), (1, Call::Map, 5), (0, Call::Submit, 6)] {
        let number = most(device, call) * share / 8;
        let name = format!("{call:?}-{device}-{number}");
        calls.set(0);
        let open = || {
            let mut faults = [None; 2];
            if calls.replace(calls.get() + 1) == 0 {
                faults[device] = Some((call, number));
            }
            several(&faults)
        };
        let (done, lines) = train_on(dir, &name, &short, &open, &|| None);
        assert!(done.is_ok(), "{name}: {done:?}\n{lines:?}");
        assert_eq!(calls.get(), 2, "{name}: the loss was not noticed\n{lines:?}");
        let who = if device > 0 { format!("device {device}: ") } else { String::new() };
        assert!(lines.iter().any(|line| line.starts_with(&who) && line.contains("was lost")), "{name}: {lines:?}");
        same(dir, &name, &name);
    }
}

/// Number of calls from one that fails to the next. Chosen so that over time calls of all kinds fail.
const SOME: u64 = 5;

fn lose_at(call: Call, stride: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // short, so that every call can be tried
    let short = |settings: &mut Settings| {
        (settings.train.steps, settings.run.val_every) = (3, 2);
        settings.run.sample_every = 0;
    };
    let calls = Cell::new(None);
    let counting = || counted(&calls);
    train_with(dir, "whole", &short, &counting, &|| None).0.unwrap();
    let calls = calls.take().unwrap();
    let most = calls[call as usize].load(std::sync::atomic::Ordering::SeqCst);
    assert!(most > 16, "{call:?}: {most}");
    let (mut tried, mut noticed, mut went_on) = (0, 0, 0);
    // the last one too
    for number in (0..most).filter(|number| number.is_multiple_of(stride) || number + 1 == most) {
        tried += 1;
        let (opened, name) = (Cell::new(0), format!("{call:?}-{number}"));
        let (done, lines) = train_with(dir, &name, &short, &faulty((call, number), &opened), &|| None);
        noticed += u64::from(opened.get() == 2);
        match done {
            Ok(_) => went_on += u64::from(lines.iter().any(|line| line.contains("was lost"))),
            // before the run's folder exists, there is nothing to resume
            Err(error) => {
                assert_eq!((error.exit_code(), opened.get()), (4, 1), "{name}: {error}\n{lines:?}");
                train_with(dir, &name, &short, &open, &|| None).0.unwrap();
            }
        }
        same(dir, &name, &name);
        fs::remove_dir_all(dir.join(&name)).unwrap();
    }
    let told = format!("{call:?}: {tried} of {most} calls, {noticed} noticed, {went_on} mended");
    assert!(noticed == went_on && went_on >= tried / 2, "{told}");
}

/// Every allocation of the trainer, and the largest of the later ones, fails once for want of memory.
#[test]
fn no_memory_at_any_allocation_is_told_with_the_plan() {
    let dir = undisturbed();
    let dir = dir.path();
    let gpu = open_anew().unwrap();
    let settings = settings(&dir.join("text.txt"));
    let trainer = || Trainer::new(&gpu, trainer_options(&settings));
    gpu.fail_at(None);
    drop(trainer().unwrap());
    let allocations = gpu.calls(Call::Allocate);
    assert!(allocations > 20, "{allocations}");
    for number in 0..allocations {
        gpu.fail_at(Some((Call::Allocate, number)));
        let error = trainer().map(|_| ()).map_err(|error| with_plan(error, &gpu, &settings)).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let text = error.to_string();
        assert!(text.contains("needs") && text.contains(" MiB in all"), "{text}");
        assert!(text.matches('`').count() >= 2, "names no tensor: {text}");
    }
    // all memory was returned, and the device still works
    gpu.fail_at(None);
    drop(trainer().unwrap());
    assert_eq!(gpu.allocated_bytes(), 0);

    // later ones: of the sample's tensors, of read-backs for a checkpoint
    let calls = Cell::new(None);
    let counting = || counted(&calls);
    train_with(dir, "counted", &|_| (), &counting, &|| None).0.unwrap();
    let all = calls.take().unwrap()[Call::Allocate as usize].load(std::sync::atomic::Ordering::SeqCst);
    assert!(all > allocations + 2, "{all}");
    for number in [allocations, allocations + 1, (allocations + all) / 2, all - 1] {
        let (opened, name) = (Cell::new(0), format!("memory-{number}"));
        let (done, _) = train_with(dir, &name, &|_| (), &faulty((Call::Allocate, number), &opened), &|| None);
        assert_eq!(done.unwrap_err().exit_code(), 5, "{name}");
        train(dir, &name).0.unwrap();
        same(dir, &name, &name);
    }
}
