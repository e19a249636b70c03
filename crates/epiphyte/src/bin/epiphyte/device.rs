//! The device that `--device` names.

use anyhow::Result;
#[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
use burn::tensor::DeviceKind;
use burn::tensor::DeviceType;
use epiphyte::Device;

use crate::failure::UsageError;

/// The device without `--device`.
pub(crate) const DEFAULT: &str = "cpu";

/// The cargo features of the GPU backends; each has the backend's name.
const FEATURES: [&str; 5] = ["cuda", "rocm", "metal", "vulkan", "wgpu"];

/// A GPU backend of this build.
struct Backend {
    name: &'static str,
    /// The type by which Burn lists its devices.
    devices: DeviceType,
    /// The backend's default device.
    choice: fn() -> Device,
}

/// The GPU backends of this build. `--device gpu` is the first.
const BUILT: &[Backend] = &[
    #[cfg(feature = "cuda")]
    Backend {
        name: "cuda",
        devices: DeviceType::Cuda,
        choice: || Device::cuda(0),
    },
    #[cfg(feature = "rocm")]
    Backend {
        name: "rocm",
        devices: DeviceType::Rocm,
        choice: || Device::rocm(0),
    },
    #[cfg(feature = "metal")]
    Backend {
        name: "metal",
        devices: DeviceType::Metal,
        choice: || Device::metal(DeviceKind::DefaultDevice),
    },
    #[cfg(feature = "vulkan")]
    Backend {
        name: "vulkan",
        devices: DeviceType::Vulkan,
        choice: || Device::vulkan(DeviceKind::DefaultDevice),
    },
    #[cfg(feature = "wgpu")]
    Backend {
        name: "wgpu",
        devices: DeviceType::Wgpu,
        choice: || Device::wgpu(DeviceKind::DefaultDevice),
    },
];

/// Parses a device name such as `cpu`, `gpu` or `cuda:1`.
///
/// # Errors
/// [`UsageError`] if the name is unknown, the build lacks the backend or the machine the device.
pub(crate) fn parse(text: &str) -> Result<Device> {
    let asked = || text.to_owned();
    let unknown = || UsageError::Device {
        name: asked(),
        available: available(),
    };
    let (name, index) = match text.split_once(':') {
        Some((name, index)) => (name, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (text, None),
    };
    if text == "cpu" {
        return Ok(Device::flex());
    }
    let named = |backend: &&Backend| name == "gpu" || name == backend.name;
    let Some(backend) = BUILT.iter().find(named) else {
        let feature = match name {
            "gpu" => "wgpu",
            name if FEATURES.contains(&name) => name,
            _ => return Err(unknown().into()),
        };
        return Err(UsageError::NoBackend {
            name: asked(),
            available: available(),
            feature: feature.to_owned(),
        }
        .into());
    };
    let mut devices = Device::enumerate(backend.devices.clone()).into_vec();
    match index {
        Some(index) if index < devices.len() => Ok(devices.swap_remove(index)),
        None if !devices.is_empty() => Ok((backend.choice)()),
        _ => Err(UsageError::NoDevice {
            name: asked(),
            backend: backend.name,
            count: devices.len(),
        }
        .into()),
    }
}

/// The device names of this build, and how many of each there are on this machine.
pub(crate) fn found() -> Vec<(&'static str, usize)> {
    let backends = BUILT.iter().map(|backend| {
        let devices = Device::enumerate(backend.devices.clone()).into_vec();
        (backend.name, devices.len())
    });
    [(DEFAULT, 1)].into_iter().chain(backends).collect()
}

/// The device names of this build, for messages: `cpu, wgpu`.
fn available() -> String {
    let backends = BUILT.iter().map(|backend| backend.name);
    let names: Vec<&str> = ["cpu"].into_iter().chain(backends).collect();
    names.join(", ")
}
