//! Where tensors live.

use anyhow::Result;
#[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
use burn::tensor::DeviceKind;
use burn::tensor::DeviceType;
use epiphyte::Device;

use crate::failure::UsageError;

/// The device if none is asked for.
pub(crate) const DEFAULT: &str = "cpu";

/// The features that bring a GPU backend, each of which is the backend's name, too.
const FEATURES: [&str; 5] = ["cuda", "rocm", "metal", "vulkan", "wgpu"];

/// A GPU backend of this build.
struct Backend {
    name: &'static str,
    /// What finds its devices.
    devices: DeviceType,
    /// The one that it would choose itself.
    choice: fn() -> Device,
}

/// The GPU backends of this build, the first of which is `gpu`.
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

/// The device of a name such as `cpu`, `gpu` or `cuda:1`.
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

/// `cpu, wgpu`: what this build can be asked for.
fn available() -> String {
    let backends = BUILT.iter().map(|backend| backend.name);
    let names: Vec<&str> = ["cpu"].into_iter().chain(backends).collect();
    names.join(", ")
}
