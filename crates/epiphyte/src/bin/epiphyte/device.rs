//! Where tensors live.

use anyhow::Result;
use epiphyte::Device;

use crate::failure::UsageError;

/// The device if none is asked for.
pub(crate) const DEFAULT: &str = "cpu";

/// The device of a name such as `cpu` or `cuda:1`.
pub(crate) fn parse(text: &str) -> Result<Device> {
    let (name, index) = text.split_once(':').unwrap_or((text, "0"));
    let unknown = || UsageError::Device {
        name: text.to_owned(),
        available: available(),
    };
    let _index: usize = index.parse().map_err(|_| unknown())?;
    match name {
        "cpu" | "flex" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(_index)),
        #[cfg(feature = "rocm")]
        "rocm" => Ok(Device::rocm(_index)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::default())),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::tensor::DeviceKind::default())),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(burn::tensor::DeviceKind::default())),
        _ => Err(unknown().into()),
    }
}

fn available() -> String {
    let built = [
        (true, "cpu"),
        (cfg!(feature = "wgpu"), "wgpu"),
        (cfg!(feature = "vulkan"), "vulkan"),
        (cfg!(feature = "metal"), "metal"),
        (cfg!(feature = "cuda"), "cuda:N"),
        (cfg!(feature = "rocm"), "rocm:N"),
    ];
    let names: Vec<&str> = built
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| name)
        .collect();
    names.join(", ")
}
