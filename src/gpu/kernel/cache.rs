//! Cache of kernels by identity. The text of each kernel is generated, parsed and reflected once, and built once by the
//! device that owns the cache. The device's handles and dry copies share the cache.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::Result;
use crate::gpu::context::lock;

use super::{Dimensions, Kernel, KernelId, Reflection};

/// Number of parsed kernels after which all modules that no device has built are dropped, each time it is reached
/// again: more than a model has. Modules take megabytes.
const MAX_MODULES: u64 = 64;

/// A compute pipeline and the layout of its bindings.
pub(in crate::gpu) type Built = (wgpu::ComputePipeline, wgpu::BindGroupLayout);

/// A kernel that naga has parsed and, if there is a device, the driver has built.
#[derive(Debug)]
pub(in crate::gpu) struct Pipeline {
    pub(in crate::gpu) id: KernelId,
    /// The printed name.
    pub(in crate::gpu) name: Arc<str>,
    body: Arc<KernelBody>,
}

impl Deref for Pipeline {
    type Target = KernelBody;

    fn deref(&self) -> &KernelBody {
        &self.body
    }
}

/// A kernel without its name. Kernels whose texts are equal, because they differ only in how many parts their work is
/// cut into, share one body.
#[derive(Debug)]
pub(in crate::gpu) struct KernelBody {
    /// Unique in the cache.
    pub(in crate::gpu) number: u64,
    /// The text, under the name of the first kernel with this body.
    pub(in crate::gpu) kernel: Kernel,
    pub(in crate::gpu) reflection: Reflection,
    /// The parsed text, for the driver. Parsing takes most of the time before a first step, because naga 30 visits all
    /// expressions of a function for each new one; so the device reuses what a dry copy has parsed.
    module: Mutex<Option<naga::Module>>,
    built: OnceLock<Built>,
    /// Held while the kernel is built, so that two threads do not both do it.
    building: Mutex<()>,
}

impl KernelBody {
    /// Returns the driver's pipeline; `None` if no device has built it.
    pub(in crate::gpu) fn built(&self) -> Option<&Built> {
        self.built.get()
    }

    /// Returns the parsed text for the driver. Parses it again if it was dropped.
    fn module(&self) -> Result<naga::Module> {
        let kept = lock(&self.module).take();
        kept.map_or_else(|| self.kernel.parse(), Ok)
    }

    /// Builds the kernel unless it is built already.
    pub(in crate::gpu) fn build(&self, build: impl FnOnce(&Self, naga::Module) -> Result<Built>) -> Result<()> {
        let _held = lock(&self.building);
        if self.built.get().is_none() {
            let built = build(self, self.module()?)?;
            let _ = self.built.set(built);
        }
        Ok(())
    }
}

/// Slot of a kernel in the cache; empty until its text is parsed.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// The cache of kernels.
#[derive(Debug, Default)]
pub(in crate::gpu) struct Kernels {
    by_id: Mutex<HashMap<KernelId, Slot>>,
    by_text: Mutex<HashMap<Text, Arc<KernelBody>>>,
    next: AtomicU64,
}

/// Everything about a kernel except its name, as a key. Values of constants are compared by their bits.
type Text = (String, &'static str, Vec<(&'static str, u64)>, Option<u32>, Option<Dimensions>);

fn text_of(kernel: &Kernel) -> Text {
    let Kernel { name: _, source, entry, constants, subgroup_size, dimensions } = kernel;
    let constants = constants.iter().map(|(name, value)| (*name, value.to_bits())).collect();
    (source.clone(), entry, constants, *subgroup_size, *dimensions)
}

impl Kernels {
    /// Returns a kernel. The first call generates and parses its text.
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
        let body = match known {
            Some(body) => body,
            None => Arc::clone(lock(&self.by_text).entry(text).or_insert(self.read(kernel)?)),
        };
        let pipeline = Arc::new(Pipeline { id: id.clone(), name, body });
        *slot = Some(Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn read(&self, kernel: Kernel) -> Result<Arc<KernelBody>> {
        let (reflection, module) = kernel.read()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number > 0 && number.is_multiple_of(MAX_MODULES) {
            self.forget_modules();
        }
        let module = Mutex::new(Some(module));
        let (built, building) = (OnceLock::new(), Mutex::default());
        Ok(Arc::new(KernelBody { number, kernel, reflection, module, built, building }))
    }

    /// Returns whether no kernel has been requested yet.
    pub(in crate::gpu) fn is_empty(&self) -> bool {
        lock(&self.by_id).is_empty()
    }

    /// Returns whether a device has built any of the kernels.
    pub(in crate::gpu) fn is_built(&self) -> bool {
        let slots: Vec<Slot> = lock(&self.by_id).values().cloned().collect();
        slots.iter().any(|slot| lock(slot).as_ref().is_some_and(|pipeline| pipeline.built().is_some()))
    }

    /// Drops the modules that no device has built.
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

    /// Number of texts of `Counted<true>` that were generated. Only one test uses that type.
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
    fn a_text_is_generated_once_for_each_identity() {
        let kernels = Kernels::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (1..=3).for_each(|of| drop(kernels.get(&id::<true>(of)).expect("read"))));
            }
        });
        assert_eq!(WRITTEN.load(Ordering::Relaxed), 3);
        assert_eq!(kernels.get(&id::<true>(2)).expect("read").reflection.workgroup_size, [2, 1, 1]);
        // a wrong text is not cached: its error is returned each time
        let wrong = KernelId::probe("wrong", "main", "fn main(".into());
        for _ in 0..2 {
            assert!(kernels.get(&wrong).expect_err("wrong").to_string().contains("wrong"));
        }
    }

    #[test]
    fn kernels_of_one_text_share_a_body() {
        let kernels = Kernels::default();
        let get = |name: &str, text: &str| kernels.get(&KernelId::probe(name, "main", text.into())).expect("read");
        let text = "@compute @workgroup_size(7) fn main() {}";
        let [a, b, other] = [get("a", text), get("b", text), get("c", &text.replace('7', "8"))];
        assert_eq!([&*a.name, &*b.name], ["a", "b"]);
        assert!(a.number == b.number && Arc::ptr_eq(&a.body, &b.body) && other.number != a.number);
        // each has its own identity
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
