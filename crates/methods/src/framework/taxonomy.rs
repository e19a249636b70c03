//! Where the surveys of the field place a method, and what its paper claims about its costs.
//!
//! A run measures the same costs, so that a report can show both side by side.

use serde::{Deserialize, Serialize};

/// The kind of a method: the folder in which its file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Small networks and vectors added inside the layers.
    Adapters,
    /// Trained vectors in front of the input, or keys and values in front of those of each layer.
    SoftPrompts,
    /// Some of the base's own parameters.
    Selective,
    /// Changes of a weight that are expressed by few parameters.
    Reparametrized,
    /// Several methods in one.
    Hybrid,
    /// Networks of their own that read the states of the frozen base.
    SideNetworks,
    /// A method of another crate that does not say.
    Other,
}

impl Kind {
    /// The kind of a type by its path, such as `epiphyte_methods::selective::full::FullConfig`.
    pub(crate) fn of_path(path: &str) -> Self {
        let folder = path.split("::").nth(1);
        match folder {
            Some("adapters") => Self::Adapters,
            Some("soft_prompts") => Self::SoftPrompts,
            Some("selective") => Self::Selective,
            Some("reparametrized") => Self::Reparametrized,
            Some("hybrid") => Self::Hybrid,
            Some("side_networks") => Self::SideNetworks,
            _ => Self::Other,
        }
    }

    /// The surveys' words for it (Lialin et al. 2023, arXiv 2303.15647).
    pub fn name(self) -> &'static str {
        match self {
            Self::Adapters => "additive (adapters)",
            Self::SoftPrompts => "additive (soft prompts)",
            Self::Selective => "selective",
            Self::Reparametrized => "reparametrized",
            Self::Hybrid => "hybrid",
            Self::SideNetworks => "additive (side network)",
            Self::Other => "other",
        }
    }
}

/// What a paper or survey says about the costs of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// Where it is said.
    pub source: &'static str,
    /// Whether a stored adapter is much smaller than the base; none if it depends, or is not said.
    pub saves_storage: Option<bool>,
    /// Whether training takes less memory than full fine-tuning; none if it depends, or is not
    /// said.
    pub saves_memory: Option<bool>,
    /// Whether gradients pass through the base; none if it is not said.
    pub gradients_through_base: Option<bool>,
    /// What inference costs more than the base: `none`, `extra input`, ..., or `not said`.
    pub inference: &'static str,
}

impl Claims {
    /// What Table 1 of Lialin et al. 2023, first version, says of most methods: they save storage
    /// and memory, and gradients pass through the base. The rows of a method also stand for those
    /// that the text names as its variants.
    pub const fn survey(inference: &'static str) -> Self {
        Self {
            source: "Lialin et al. 2023, arXiv 2303.15647",
            saves_storage: Some(true),
            saves_memory: Some(true),
            gradients_through_base: Some(true),
            inference,
        }
    }

    /// What a method's own paper or documentation says: few values are stored. Of memory and
    /// gradients this says nothing.
    pub const fn paper(source: &'static str, inference: &'static str) -> Self {
        Self {
            source,
            saves_storage: Some(true),
            saves_memory: None,
            gradients_through_base: None,
            inference,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;
    use crate::METHODS;

    #[test]
    fn every_method_has_the_kind_of_its_folder() {
        for method in METHODS {
            assert_ne!((method.kind)(), Kind::Other, "{}", method.name);
        }
        let path = "epiphyte_methods::soft_prompts::cpt::CptConfig";
        assert_eq!(Kind::of_path(path), Kind::SoftPrompts);
        assert_eq!(Kind::of_path("mine::selective::Config"), Kind::Selective);
        assert_eq!(Kind::of_path("mine::Config"), Kind::Other);
    }
}
