//! The devices of a run: the adapters that the environment does not hide, those that the user chooses, and the
//! capabilities that all of them have.

use std::sync::Arc;

use crate::error::{Error, Fault, Result};
use crate::units;

use super::adapter::{self, Caps, DeviceInfo, Vendor};
use super::context::{Gpu, Options};

/// Place of an error about the requested list of adapters.
pub const ADAPTERS_CHOICE: &str = "adapters";

/// Place of an error about an adapter that is listed twice although devices may not share it.
pub const ADAPTER_TWICE: &str = "adapters, each once";

/// Environment variables that hide some of a vendor's GPUs. Vulkan itself ignores them.
const VARIABLES: [(Vendor, &str); 3] = [
    (Vendor::Nvidia, "CUDA_VISIBLE_DEVICES"),
    (Vendor::Amd, "ROCR_VISIBLE_DEVICES"),
    (Vendor::Intel, "ZE_AFFINITY_MASK"),
];

/// The properties of an adapter by which the environment's variables count it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Its vendor; `None` for software.
    pub vendor: Option<Vendor>,
    /// Name of its backend.
    pub backend: String,
    /// See [`Caps::bus`].
    pub bus: String,
}

/// Returns whether two adapters, each given as backend and PCI bus id, are one GPU with two drivers. On DX12 equal GPUs
/// report the same bus id, so it proves nothing there.
fn is_one_gpu([a, b]: [(&str, &str); 2]) -> bool {
    a == b && a.0 != "Dx12" && !a.1.is_empty()
}

/// Returns for each adapter whether it stays visible, and a line for each environment variable that applies. The
/// adapters are in the order of the PCI bus; each backend counts its own.
pub(super) fn visible(adapters: &[Seen], read: impl Fn(&str) -> Option<String>) -> (Vec<bool>, Vec<String>) {
    let (mut left, mut lines) = (vec![true; adapters.len()], Vec::new());
    for (vendor, variable) in VARIABLES {
        let own: Vec<usize> = (0..adapters.len()).filter(|&at| adapters[at].vendor == Some(vendor)).collect();
        let Some(text) = read(variable).filter(|_| !own.is_empty()) else { continue };
        // Intel's variable may name a part of a GPU after a dot; -1 and an empty text mean no GPU
        let number = |word: &str| word.trim().split('.').next().unwrap_or_default().parse::<i64>();
        let words: Vec<&str> = text.split(',').filter(|word| !word.trim().is_empty()).collect();
        let Ok(numbers) = words.iter().map(|word| number(word)).collect::<std::result::Result<Vec<i64>, _>>() else {
            lines.push(format!("{variable}={text} is ignored, expected numbers in the order of the PCI bus"));
            continue;
        };
        let names = |at: usize| (&*adapters[at].backend, &*adapters[at].bus);
        // a GPU with several drivers is counted once
        let mut counted: Vec<(usize, i64)> = Vec::new();
        for &at in &own {
            let alike = counted.iter().find(|(other, _)| is_one_gpu([names(at), names(*other)]));
            let before = counted.iter().filter(|(other, _)| adapters[*other].backend == adapters[at].backend);
            let number =
                alike.map_or_else(|| before.map(|(_, number)| number + 1).max().unwrap_or(0), |(_, number)| *number);
            counted.push((at, number));
        }
        counted.iter().for_each(|(at, number)| left[*at] = numbers.contains(number));
        let used = own.iter().filter(|&&at| left[at]).count();
        lines.push(format!(
            "{variable}={text} keeps {used} of {}, counted in the order of the PCI bus",
            units::counted(own.len() as u64, "adapter")
        ));
    }
    (left, lines)
}

/// Returns the numbers of the adapters in [`adapter::list`] that `asked` names: `all`, or numbers and PCI bus ids
/// separated by commas. `all` means the adapters of the first one's kind and backend, each GPU once; discrete GPUs come
/// first in the list, so it means these where there are any. An adapter may be listed twice only if devices may `share`
/// it.
///
/// # Errors
/// [`Error::Device`] if an adapter is unknown; [`Error::Usage`] if one is listed twice, or `asked` is not a list.
pub fn choose(asked: &str, share: bool) -> Result<Vec<usize>> {
    chosen(asked, share, &adapter::list())
}

/// Returns the number of adapters in a list, which need not exist on this machine; `None` for `all`.
///
/// # Errors
/// [`Error::Usage`] if `asked` is not a list, or lists an adapter twice that devices may not `share`.
pub fn count(asked: &str, share: bool) -> Result<Option<usize>> {
    let Some(words) = words(asked)? else { return Ok(None) };
    match words.iter().enumerate().find(|(at, word)| !share && words[..*at].contains(word)) {
        Some((_, word)) => Err(twice(word)),
        None => Ok(Some(words.len())),
    }
}

/// Splits a list into its numbers and PCI bus ids; `None` for `all`.
fn words(asked: &str) -> Result<Option<Vec<&str>>> {
    if asked.trim() == "all" {
        return Ok(None);
    }
    let words: Vec<&str> = asked.split(',').map(str::trim).collect();
    let is_place = |word: &&str| word.parse::<usize>().is_ok() || word.contains(':');
    if let Some(word) = words.iter().find(|word| !is_place(word)) {
        let fault = Fault::at(ADAPTERS_CHOICE, format!("`{word}` is neither a number nor a PCI bus id"));
        return Err(Error::usage(fault.expected("all, or a list such as 0,1")));
    }
    Ok(Some(words))
}

fn twice(adapter: &str) -> Error {
    Error::usage(Fault::at(ADAPTER_TWICE, format!("{adapter} is listed twice")).expected("each once"))
}

fn chosen(asked: &str, share: bool, there: &[DeviceInfo]) -> Result<Vec<usize>> {
    let words = words(asked)?;
    let known = || there.iter().map(DeviceInfo::place).collect::<Vec<_>>().join(", ");
    let unknown = |word: &str| {
        let fault = Fault::at(ADAPTERS_CHOICE, format!("no adapter is `{word}`"));
        Error::device(fault.expected(format!("all, or some of {}", known())))
    };
    let Some(first) = there.first() else { return Err(adapter::none()) };
    let Some(words) = words else {
        let kind = |caps: &Caps| (caps.software, caps.integrated, caps.backend.clone());
        let like = there.iter().filter(|device| kind(&device.caps) == kind(&first.caps));
        let mut all: Vec<&DeviceInfo> = Vec::new();
        for device in like {
            if !all.iter().any(|other| are_one(device, other)) {
                all.push(device);
            }
        }
        return Ok(all.iter().map(|device| device.index).collect());
    };
    let mut list: Vec<&DeviceInfo> = Vec::new();
    for word in words {
        let of_bus = |device: &&DeviceInfo| word.contains(':') && device.caps.is_at(word);
        let by_number = || word.parse::<usize>().ok().and_then(|number| there.get(number));
        let device = there.iter().find(of_bus).or_else(by_number).ok_or_else(|| unknown(word))?;
        if !share && list.iter().any(|other| other.index == device.index || are_one(device, other)) {
            return Err(twice(&device.place()));
        }
        list.push(device);
    }
    Ok(list.iter().map(|device| device.index).collect())
}

fn are_one(a: &DeviceInfo, b: &DeviceInfo) -> bool {
    is_one_gpu([a, b].map(|device| (&*device.caps.backend, &*device.caps.bus)))
}

/// Opens the adapters of a run. Each gets only the capabilities that all of them have, so that all run the same
/// kernels.
///
/// # Errors
/// The first error of [`Gpu::open`].
pub fn open(all: &[Options]) -> Result<Vec<Gpu>> {
    let mut gpus = all.iter().map(Gpu::open).collect::<Result<Vec<Gpu>>>()?;
    let all: Vec<Caps> = gpus.iter().map(|gpu| gpu.caps.clone()).collect();
    restrict(&mut gpus, &all);
    Ok(gpus)
}

/// Restricts each adapter to the capabilities that all of `all` have. `all` includes its own.
pub fn restrict(gpus: &mut [Gpu], all: &[Caps]) {
    let Some(common) = common(all).filter(|_| all.len() > 1) else { return };
    for gpu in gpus {
        let own = &gpu.caps;
        let (name, driver, bus) = (own.name.clone(), own.driver.clone(), own.bus.clone());
        gpu.caps = Caps { name, driver, bus, tuned: Arc::clone(&own.tuned), ..common.clone() };
    }
}

/// Returns whether two adapters of a machine are one GPU, as far as their properties show.
#[must_use]
pub fn are_same(a: &Caps, b: &Caps) -> bool {
    let named = |caps: &Caps| (caps.backend.clone(), caps.name.clone(), caps.bus.clone());
    if a.bus.is_empty() || b.bus.is_empty() { named(a) == named(b) } else { a.bus == b.bus }
}

/// Returns the capabilities that all of several adapters have, under the name of the first. Kernels chosen by them run
/// on each adapter. `None` if `all` is empty.
#[must_use]
pub fn common(all: &[Caps]) -> Option<Caps> {
    let (first, others) = all.split_first()?;
    Some(others.iter().fold(first.clone(), |a, b| Caps {
        vendor: if a.vendor == b.vendor { a.vendor } else { Vendor::Other },
        backend: a.backend,
        name: a.name,
        driver: a.driver,
        bus: a.bus,
        software: a.software || b.software,
        integrated: a.integrated || b.integrated,
        lanes: a.lanes.min(b.lanes),
        max_binding_bytes: a.max_binding_bytes.min(b.max_binding_bytes),
        most_flops: a.most_flops.min(b.most_flops),
        most_bytes: a.most_bytes.min(b.most_bytes),
        max_buffer_bytes: a.max_buffer_bytes.min(b.max_buffer_bytes),
        max_storage_buffers: a.max_storage_buffers.min(b.max_storage_buffers),
        max_workgroup_bytes: a.max_workgroup_bytes.min(b.max_workgroup_bytes),
        max_invocations: a.max_invocations.min(b.max_invocations),
        max_groups: a.max_groups.min(b.max_groups),
        offset_alignment: a.offset_alignment.max(b.offset_alignment),
        compute_units: a.compute_units.zip(b.compute_units).map(|(a, b)| a.min(b)),
        f16: a.f16 && b.f16,
        int64: a.int64 && b.int64,
        subgroups: a.subgroups && b.subgroups,
        subgroup_sizes: (a.subgroup_sizes.0.min(b.subgroup_sizes.0), a.subgroup_sizes.1.max(b.subgroup_sizes.1)),
        subgroup_control: a.subgroup_control && b.subgroup_control && a.subgroup_sizes == b.subgroup_sizes,
        timestamps: a.timestamps && b.timestamps,
        encoder_timestamps: a.encoder_timestamps && b.encoder_timestamps,
        matrix_edges: a.matrix_edges.into_iter().filter(|edge| b.matrix_edges.contains(edge)).collect(),
        matrix_functions: a.matrix_functions && b.matrix_functions,
        flexible: a.flexible.filter(|_| a.flexible == b.flexible),
        emulated_edge: a.emulated_edge.filter(|_| a.emulated_edge == b.emulated_edge),
        tuned: a.tuned,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_hides_gpus_by_their_order() {
        let seen = |vendor, backend: &str, bus: &str| Seen { vendor, backend: backend.into(), bus: bus.into() };
        let vendors = [Vendor::Nvidia, Vendor::Amd, Vendor::Nvidia, Vendor::Nvidia].map(Some);
        let all: Vec<Seen> = vendors.into_iter().chain([None]).map(|vendor| seen(vendor, "Vulkan", "")).collect();
        let left = |variable: &str, value: &str| visible(&all, |name| (name == variable).then(|| value.to_owned()));
        for (value, want) in [
            ("0,2", [true, true, false, true]),
            ("1", [false, true, true, false]),
            ("", [false, true, false, false]),
            ("-1", [false, true, false, false]),
            (" 2 , 0 ", [true, true, false, true]),
            ("7", [false, true, false, false]),
        ] {
            let (left, lines) = left("CUDA_VISIBLE_DEVICES", value);
            assert_eq!(left, [&want[..], &[true]].concat(), "{value}");
            assert_eq!(lines.len(), 1, "{lines:?}");
        }
        let (unread, lines) = left("CUDA_VISIBLE_DEVICES", "GPU-8932f937");
        assert!(unread.iter().all(|left| *left) && lines[0].contains("is ignored"), "{lines:?}");
        assert_eq!(left("ROCR_VISIBLE_DEVICES", "0").0, [true; 5]);
        // there is no Intel GPU
        assert_eq!(left("ZE_AFFINITY_MASK", "3.1"), (vec![true; 5], vec![]));
        // two drivers of the first GPU, and another backend
        let amd = Some(Vendor::Amd);
        let twice = [("Vulkan", "0000:01:00.0"), ("Vulkan", "0000:01:00.0"), ("Dx12", ""), ("Vulkan", "0000:02:00.0")];
        let twice: Vec<Seen> = twice.into_iter().map(|(backend, bus)| seen(amd, backend, bus)).collect();
        let (left, _) = visible(&twice, |name| (name == "ROCR_VISIBLE_DEVICES").then(|| "1".to_owned()));
        assert_eq!(left, [false, false, false, true]);
    }

    fn device(index: usize, bus: &str, integrated: bool) -> DeviceInfo {
        let caps = Caps { name: format!("GPU {index}"), bus: bus.into(), integrated, ..Caps::webgpu_defaults() };
        DeviceInfo { index, caps, kind: String::new() }
    }

    #[test]
    fn devices_are_chosen_by_number_or_bus() {
        let there =
            [device(0, "0000:01:00.0", false), device(1, "0000:41:00.0", false), device(2, "0000:00:02.0", true)];
        assert_eq!(chosen("all", false, &there).unwrap(), [0, 1]);
        assert_eq!(chosen("1, 0", false, &there).unwrap(), [1, 0]);
        assert_eq!(chosen("0000:41:00.0,2", false, &there).unwrap(), [1, 2]);
        assert_eq!(chosen("41:00.0", false, &there).unwrap(), [1]);
        assert_eq!(chosen("00000000:41:00.0", false, &there).unwrap(), [1]);
        // a second driver of the first GPU
        let mut twice = there.to_vec();
        twice[1].caps.bus.clone_from(&there[0].caps.bus);
        assert_eq!(chosen("all", false, &twice).unwrap(), [0]);
        assert!(chosen("0,1", false, &twice).is_err());
        assert_eq!(chosen("0,0,0", true, &there).unwrap(), [0, 0, 0]);
        for missing in ["3", "0000:42:00.0", "0,7", ":"] {
            let error = chosen(missing, true, &there).unwrap_err();
            assert!(
                matches!(error, Error::Device(_)) && error.to_string().contains("0000:41:00.0"),
                "{missing}: {error}"
            );
        }
        for no_list in ["", "0,", "x", "-1", "0-1", "0 0"] {
            let error = chosen(no_list, true, &there).unwrap_err();
            assert!(matches!(error, Error::Usage(_)) && count(no_list, true).is_err(), "{no_list}: {error}");
        }
        assert_eq!([count("all", false).unwrap(), count("0,0", true).unwrap()], [None, Some(2)]);
        assert!(count("0,1,0", false).is_err());
        let twice = chosen("0,01:00.0", false, &there).unwrap_err();
        assert!(matches!(twice, Error::Usage(_)) && twice.to_string().contains("is listed twice"), "{twice}");
        assert!(chosen("all", false, &[]).is_err());
    }

    #[test]
    fn kernels_for_several_devices_use_their_common_capabilities() {
        let plain = Caps::webgpu_defaults();
        let better = Caps {
            f16: true,
            matrix_edges: vec![8, 16],
            matrix_functions: true,
            max_workgroup_bytes: 48 << 10,
            subgroups: true,
            subgroup_sizes: (32, 32),
            ..plain.clone()
        };
        let other = Caps { matrix_edges: vec![16], max_workgroup_bytes: 32 << 10, ..better.clone() };
        let both = common(&[better.clone(), other]).unwrap();
        assert_eq!((both.matrix_edges, both.max_workgroup_bytes), (vec![16], 32 << 10));
        let least = common(&[better.clone(), plain]).unwrap();
        assert!(!least.f16 && !least.subgroups && !least.matrix_functions && least.matrix_edges.is_empty());
        assert_eq!(common(&[better.clone(), better.clone()]), Some(better));
    }
}
