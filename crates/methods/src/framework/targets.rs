//! Which linear layers a method acts on, by HF PEFT's rules.
//!
//! `target_modules` is a list (a module matches if its path is an entry or ends with `.entry`), a
//! regular expression that must match the whole path, or `all-linear`, which is every linear layer
//! but the head. `exclude_modules` removes, `layers_to_transform` narrows.
//!
//! A finished adapter may name modules and layers that the base does not have, as PEFT allows. When
//! training begins, each name must match something ([`Selection::check_start`]): a misspelt one
//! would silently train less.

use epiphyte_models::{Base, LinearInfo, Role};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::MethodError;
use crate::framework::patterns::{Pattern, PatternError};

/// The word for every linear layer but the head.
pub const ALL_LINEAR: &str = "all-linear";

/// Whether the targets' weights are stored as `[in, out]`: a key of HF PEFT that follows from the
/// base.
pub(crate) const FAN_IN_FAN_OUT: &str = "fan_in_fan_out";

/// Names of modules: a list of path endings, or a regular expression for whole paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// Path endings.
    Endings(Vec<String>),
    /// A regular expression, or `all-linear`.
    Pattern(String),
}

impl Modules {
    /// Path endings.
    pub fn endings(names: &[&str]) -> Self {
        Self::Endings(names.iter().map(|&name| name.to_owned()).collect())
    }

    /// From the command line: names separated by commas, or anything else as a pattern.
    pub fn parse(text: &str) -> Self {
        let is_name = |name: &str| {
            !name.is_empty()
                && name
                    .chars()
                    .all(|c| c.is_alphanumeric() || "_.".contains(c))
        };
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        if text != ALL_LINEAR && names.iter().all(|name| is_name(name)) {
            Self::Endings(names.into_iter().map(str::to_owned).collect())
        } else {
            Self::Pattern(text.to_owned())
        }
    }

    /// Whether a module's path matches.
    ///
    /// # Errors
    /// If the pattern is not a regular expression, or takes too long.
    pub fn matches(&self, path: &str) -> Result<bool, PatternError> {
        match self {
            Self::Endings(endings) => Ok(endings.iter().any(|ending| ends_with(path, ending))),
            Self::Pattern(pattern) => Pattern::whole(pattern)?.matches(path),
        }
    }
}

impl std::fmt::Display for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Endings(endings) => write!(f, "`{}`", endings.join(",")),
            Self::Pattern(pattern) => write!(f, "`{pattern}`"),
        }
    }
}

/// Whether `path` is `ending` or ends with it after a dot.
pub fn ends_with(path: &str, ending: &str) -> bool {
    path.strip_suffix(ending)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

crate::settings! {
    /// Which linear layers a method acts on, where HF PEFT's configuration has nothing else.
    pub struct NamedTargets {
        /// Linear layers to adapt: names, a regular expression, or all-linear.
        target_modules: Option<Modules> = None, unset "depends on the model's family";
    }
}

crate::settings! {
    /// The same, in some layers of the model.
    pub struct LayerTargets {
        /// Linear layers to adapt: names, a regular expression, or all-linear.
        target_modules: Option<Modules> = None, unset "depends on the model's family";
        /// Numbers of the layers to adapt.
        layers_to_transform: Option<Vec<usize>> = None, unset "all";
        /// Name of the module list that these numbers count, such as layers.
        layers_pattern: Option<Vec<String>> = None, unset "the model's layers";
    }
}

crate::settings! {
    /// Which linear layers a method acts on.
    pub struct TargetModules {
        /// Linear layers to adapt: names, a regular expression, or all-linear.
        target_modules: Option<Modules> = None, unset "depends on the model's family";
        /// Linear layers to leave out.
        exclude_modules: Option<Modules> = None;
    }
}

crate::settings! {
    /// Which linear layers a method acts on, and in which layers of the model.
    pub struct Targets {
        /// Numbers of the layers to adapt.
        layers_to_transform: Option<Vec<usize>> = None, unset "all";
        /// Name of the module list that these numbers count, such as layers.
        layers_pattern: Option<Vec<String>> = None, unset "the model's layers";

        ..modules: TargetModules = TargetModules::default();
    }
}

impl NamedTargets {
    /// As [`TargetModules::selection`].
    pub fn selection(
        &self,
        method: &'static str,
        defaults: fn(&Base) -> &'static [&'static str],
    ) -> Selection<'_> {
        Selection::of_modules(method, self.target_modules.as_ref(), defaults)
    }

    /// As [`TargetModules::resolved`].
    pub fn resolved(&self, target_modules: Modules) -> Self {
        Self {
            target_modules: Some(target_modules),
        }
    }
}

impl LayerTargets {
    /// As [`Targets::selection`].
    pub fn selection(
        &self,
        method: &'static str,
        defaults: fn(&Base) -> &'static [&'static str],
    ) -> Selection<'_> {
        Selection {
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: self.layers_pattern.as_deref().unwrap_or_default(),
            ..Selection::of_modules(method, self.target_modules.as_ref(), defaults)
        }
    }

    /// As [`TargetModules::resolved`].
    pub fn resolved(&self, target_modules: Modules) -> Self {
        Self {
            target_modules: Some(target_modules),
            ..self.clone()
        }
    }
}

impl TargetModules {
    /// What these settings select; `defaults` names the targets if none are set.
    pub fn selection(
        &self,
        method: &'static str,
        defaults: fn(&Base) -> &'static [&'static str],
    ) -> Selection<'_> {
        Selection {
            exclude_modules: self.exclude_modules.as_ref(),
            ..Selection::of_modules(method, self.target_modules.as_ref(), defaults)
        }
    }

    /// The same with these target modules, for the file.
    pub fn resolved(&self, target_modules: Modules) -> Self {
        Self {
            target_modules: Some(target_modules),
            ..self.clone()
        }
    }
}

impl Targets {
    /// As [`TargetModules::selection`], in the layers that are set.
    pub fn selection(
        &self,
        method: &'static str,
        defaults: fn(&Base) -> &'static [&'static str],
    ) -> Selection<'_> {
        Selection {
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: self.layers_pattern.as_deref().unwrap_or_default(),
            ..self.modules.selection(method, defaults)
        }
    }

    /// As [`TargetModules::resolved`].
    pub fn resolved(&self, target_modules: Modules) -> Self {
        Self {
            modules: self.modules.resolved(target_modules),
            ..self.clone()
        }
    }
}

/// A table of embeddings that is a target.
#[derive(Clone, Copy, Debug)]
pub struct TableInfo<'b> {
    /// Its module's path.
    pub path: &'b str,
    /// Its rows: the vocabulary.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
}

/// The choice of linear layers in a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The method, for messages.
    pub method: &'static str,
    /// What to take; the family's default where none is given.
    pub target_modules: Option<&'a Modules>,
    /// What to leave out.
    pub exclude_modules: Option<&'a Modules>,
    /// Only these layers.
    pub layers_to_transform: Option<&'a [usize]>,
    /// Names of the module lists whose numbers these are; those of the model's layers if empty.
    pub layers_pattern: &'a [String],
    /// What to take where the configuration names nothing, by model type.
    pub defaults: fn(&Base) -> &'static [&'static str],
}

/// The value of the first key of a pattern setting, such as `rank_pattern`, that matches the end of
/// `path`, as HF PEFT matches them.
pub(crate) fn first_match<T: Copy>(
    method: &'static str,
    pattern: &IndexMap<String, T>,
    path: &str,
) -> Result<Option<T>, MethodError> {
    for (key, value) in pattern {
        if matches_ending(method, key, path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Checks that each key of a pattern setting matches one of the targets, which training demands.
pub fn check_keys<T>(
    method: &'static str,
    setting: &'static str,
    pattern: &IndexMap<String, T>,
    targets: &[&LinearInfo],
) -> Result<(), MethodError> {
    let paths = targets.iter().map(|target| &*target.site.path);
    check_keys_of(method, setting, pattern, &paths.collect::<Vec<_>>())
}

/// As [`check_keys`], for targets of these paths.
pub(crate) fn check_keys_of<T>(
    method: &'static str,
    setting: &'static str,
    pattern: &IndexMap<String, T>,
    paths: &[&str],
) -> Result<(), MethodError> {
    for key in pattern.keys() {
        let mut matched = false;
        for path in paths {
            matched = matched || matches_ending(method, key, path)?;
        }
        if !matched {
            let example = paths.first().copied().unwrap_or_default();
            return Err(MethodError::Value {
                method,
                key: setting,
                value: key.clone(),
                expected: format!("no path of a target ends so; one is `{example}`"),
            });
        }
    }
    Ok(())
}

/// Whether the end of `path` matches a key of a pattern setting.
fn matches_ending(method: &'static str, key: &str, path: &str) -> Result<bool, MethodError> {
    let matches = Pattern::ending(key).and_then(|pattern| pattern.matches(path));
    matches.map_err(|error| MethodError::Configuration {
        method,
        reason: format!("a rank or alpha pattern cannot be used: {error}"),
    })
}

/// The word embeddings, where they can be a target: an encoder-decoder has one table for both of
/// its stacks, and HF PEFT changes it for neither.
fn word_embeddings(base: &Base) -> Option<TableInfo<'_>> {
    let [rows, columns] = base.word_embedding_table().shape();
    (base.dimensions.encoder_layers == 0).then(|| TableInfo {
        path: base.word_embeddings.trim_end_matches(".weight"),
        rows,
        columns,
    })
}

/// Checks a rank against the smaller side of the linear layer at `path`, of these two sizes.
pub(crate) fn check_rank(
    method: &'static str,
    key: &'static str,
    rank: usize,
    path: &str,
    sizes: [usize; 2],
) -> Result<(), MethodError> {
    let most = sizes[0].min(sizes[1]);
    if (1..=most).contains(&rank) {
        return Ok(());
    }
    Err(MethodError::Value {
        method,
        key,
        value: rank.to_string(),
        expected: format!("it must be from 1 to {most}, the smaller side of `{path}`"),
    })
}

impl<'a> Selection<'a> {
    /// The linear layers of these names, in all layers of the model.
    pub fn of_modules(
        method: &'static str,
        target_modules: Option<&'a Modules>,
        defaults: fn(&Base) -> &'static [&'static str],
    ) -> Self {
        Self {
            method,
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: &[],
            defaults,
        }
    }
}

impl Selection<'_> {
    /// The linear layers of `base` that are selected.
    ///
    /// # Errors
    /// [`MethodError::NoTarget`] if there are none, [`MethodError::Value`] if exclusions or layers
    /// leave none, or if a table of embeddings or the language model's head is asked for,
    /// [`MethodError::Configuration`] if a pattern is not a regular expression.
    pub fn of<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        self.check(&self.targets(base), None, base)?;
        self.linears(base)
    }

    /// As [`Selection::of`], for methods that have a form for the language model's head, which is
    /// then among the linear layers, and for the word embeddings.
    ///
    /// # Errors
    /// As [`Selection::of`], but for the word embeddings and the head.
    pub fn anywhere<'b>(
        &self,
        base: &'b Base,
    ) -> Result<(Vec<&'b LinearInfo>, Option<TableInfo<'b>>), MethodError> {
        let table = word_embeddings(base);
        self.check(&self.targets(base), Some(table), base)?;
        let words = match table {
            Some(table) if self.names_table(table, base)? => Some(table),
            _ => None,
        };
        if words.is_some() && self.named(&self.targets(base), base)?.is_empty() {
            return Ok((Vec::new(), words));
        }
        Ok((self.linears(base)?, words))
    }

    /// The linear layers that are selected.
    fn linears<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let targets = self.targets(base);
        let named = self.named(&targets, base)?;
        if named.is_empty() {
            return Err(MethodError::NoTarget {
                method: self.method,
                targets: targets.to_string(),
                model_type: base.dimensions.model_type.clone(),
                available: available(base).join(", "),
            });
        }
        let mut included = Vec::new();
        for linear in named {
            if !self.is_excluded(&linear.site.path)? {
                included.push(linear);
            }
        }
        if included.is_empty() {
            let excluded = self.exclude_modules.map(Modules::to_string);
            return Err(MethodError::Value {
                method: self.method,
                key: "exclude_modules",
                value: excluded.unwrap_or_default(),
                expected: format!("that leaves none of the target modules {targets}"),
            });
        }
        let Some(layers) = self.layers_to_transform else {
            return Ok(included);
        };
        let mut chosen = Vec::new();
        for linear in &included {
            let layer = self.layer(linear)?;
            if layer.is_some_and(|layer| layers.contains(&layer)) {
                chosen.push(*linear);
            }
        }
        if chosen.is_empty() {
            return Err(self.no_layer(layers, &included)?);
        }
        Ok(chosen)
    }

    /// Whether a table is a target.
    fn names_table(&self, table: TableInfo<'_>, base: &Base) -> Result<bool, MethodError> {
        let targets = self.targets(base);
        Ok(self.layers_to_transform.is_none()
            && targets != Modules::Pattern(ALL_LINEAR.to_owned())
            && self.matches(&targets, table.path)?
            && !self.is_excluded(table.path)?)
    }

    /// Checks that each name in the settings matches something, which training demands and a
    /// finished adapter does not.
    ///
    /// # Errors
    /// [`MethodError::Unmatched`] for names of modules, [`MethodError::Value`] for layers; as
    /// [`Selection::of`].
    pub fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.of(base)?;
        self.check_all_names(None, base)
    }

    /// As [`Selection::check_start`], for [`Selection::anywhere`].
    ///
    /// # Errors
    /// As there.
    pub fn check_start_anywhere(&self, base: &Base) -> Result<(), MethodError> {
        self.anywhere(base)?;
        self.check_all_names(word_embeddings(base), base)
    }

    fn check_all_names(
        &self,
        table: Option<TableInfo<'_>>,
        base: &Base,
    ) -> Result<(), MethodError> {
        for (key, modules) in [
            ("target_modules", self.target_modules),
            ("exclude_modules", self.exclude_modules),
        ] {
            self.check_names(key, modules, table, base)?;
        }
        let Some(layers) = self.layers_to_transform else {
            return Ok(());
        };
        let anywhere = Selection {
            layers_to_transform: None,
            ..*self
        };
        let targets = anywhere.linears(base)?;
        let there = self.layers(&targets)?;
        let absent = layers.iter().filter(|layer| !there.contains(layer));
        let absent: Vec<usize> = absent.copied().collect();
        match absent.is_empty() {
            true => Ok(()),
            false => Err(self.no_layer(&absent, &targets)?),
        }
    }

    /// Checks that each of a list of names, or a pattern, matches a linear layer.
    fn check_names(
        &self,
        key: &'static str,
        modules: Option<&Modules>,
        table: Option<TableInfo<'_>>,
        base: &Base,
    ) -> Result<(), MethodError> {
        let each = match modules {
            None => return Ok(()),
            Some(Modules::Endings(names)) => names
                .iter()
                .map(|name| Modules::Endings(vec![name.clone()]))
                .collect(),
            Some(pattern) => vec![pattern.clone()],
        };
        // The task's head is trained whole, and tables of embeddings are left out, with every
        // method: naming them changes nothing.
        let heads = base.linears().iter().map(|linear| &*linear.site.path);
        let heads = heads.filter(|path| is_of_task_head(base, path));
        let tensors = base.tensors().keys();
        let tensors = tensors.filter_map(|name| name.strip_suffix(".weight"));
        let others: Vec<&str> = match key {
            "target_modules" => heads.chain(table.map(|table| table.path)).collect(),
            _ => tensors.collect(),
        };
        let mut unmatched = Vec::new();
        for one in each {
            let mut matched = !self.named(&one, base)?.is_empty();
            for path in &others {
                matched = matched || self.matches(&one, path)?;
            }
            if !matched {
                unmatched.push(one.to_string().trim_matches('`').to_owned());
            }
        }
        if unmatched.is_empty() {
            return Ok(());
        }
        Err(MethodError::Unmatched {
            method: self.method,
            key,
            unmatched,
            model_type: base.dimensions.model_type.clone(),
            available: available(base),
        })
    }

    /// The linear layers in front of the task's head that `modules` names, wherever they are.
    fn named<'b>(
        &self,
        modules: &Modules,
        base: &'b Base,
    ) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let mut named = Vec::new();
        for linear in base.linears() {
            let path = &linear.site.path;
            let taken = match modules {
                Modules::Pattern(word) if word == ALL_LINEAR => linear.site.role != Role::Head,
                modules => self.matches(modules, path)?,
            };
            if taken && !is_of_task_head(base, path) {
                named.push(linear);
            }
        }
        Ok(named)
    }

    /// The layer of a linear layer, as PEFT reads it off the path: the first number, which a
    /// decoder counts as its encoder does, or the one behind the name of the module list.
    fn layer(&self, linear: &LinearInfo) -> Result<Option<usize>, MethodError> {
        if self.layers_pattern.is_empty() {
            let mut parts = linear.site.path.split('.');
            return Ok(parts.find_map(|part| part.parse().ok()));
        }
        let parts: Vec<&str> = linear.site.path.split('.').collect();
        for name in self.layers_pattern {
            let pattern = Pattern::whole(name).map_err(|error| self.wrong_pattern(&error))?;
            for pair in parts.windows(2).rev() {
                let number = pair[1].parse().ok();
                let listed = pattern.matches(pair[0]);
                if number.is_some() && listed.map_err(|error| self.wrong_pattern(&error))? {
                    return Ok(number);
                }
            }
        }
        Ok(None)
    }

    /// The layers in which targets are, sorted.
    fn layers(&self, targets: &[&LinearInfo]) -> Result<Vec<usize>, MethodError> {
        let mut layers = Vec::new();
        for linear in targets {
            layers.extend(self.layer(linear)?);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(layers)
    }

    /// None of the targets is in these layers.
    fn no_layer(
        &self,
        layers: &[usize],
        targets: &[&LinearInfo],
    ) -> Result<MethodError, MethodError> {
        let list = |layers: &[usize]| {
            let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
            layers.join(", ")
        };
        let there = self.layers(targets)?;
        if there.is_empty() && !self.layers_pattern.is_empty() {
            return Ok(MethodError::Value {
                method: self.method,
                key: "layers_pattern",
                value: self.layers_pattern.join(", "),
                expected: format!(
                    "no number follows that name in a path such as `{}`",
                    targets[0].site.path
                ),
            });
        }
        Ok(MethodError::Value {
            method: self.method,
            key: "layers_to_transform",
            value: list(layers),
            expected: format!("the target modules are in layers {}", list(&there)),
        })
    }

    /// Refuses targets that exist but that the method cannot act on: tables of embeddings, the
    /// language model's head. HF PEFT has forms of LoRA for them; passing over them would be
    /// silent.
    ///
    /// `anywhere` says that the head is no such target, nor the table in it.
    fn check(
        &self,
        targets: &Modules,
        anywhere: Option<Option<TableInfo<'_>>>,
        base: &Base,
    ) -> Result<(), MethodError> {
        if *targets == Modules::Pattern(ALL_LINEAR.to_owned()) {
            return Ok(());
        }
        let linears = base.linears();
        let tables = base.tensors().iter().filter_map(|(name, tensor)| {
            let path = name.strip_suffix(".weight")?;
            let is_table = tensor.matrix().is_some()
                && linears.iter().all(|linear| linear.site.path != path)
                && anywhere.flatten().is_none_or(|table| table.path != path);
            is_table.then_some((path, "a table of embeddings"))
        });
        let heads = linears
            .iter()
            .filter(|linear| linear.site.role == Role::Head);
        let heads = heads.map(|linear| (linear.site.path.as_str(), "the language model's head"));
        let heads = heads.filter(|(path, _)| anywhere.is_none() && !is_of_task_head(base, path));
        for (path, what) in tables.chain(heads) {
            if self.matches(targets, path)? && !self.is_excluded(path)? {
                return Err(MethodError::Value {
                    method: self.method,
                    key: "target_modules",
                    value: targets.to_string(),
                    expected: format!(
                        "`{path}` is {what}; only linear layers in front of the head can be adapted"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Keys of HF PEFT that follow from the targets ([`MethodConfig::COMPUTED`]), for methods whose
    /// files have `fan_in_fan_out`.
    ///
    /// [`MethodConfig::COMPUTED`]: crate::MethodConfig::COMPUTED
    pub const COMPUTED: &'static [&'static str] = &[FAN_IN_FAN_OUT];

    /// The values of [`Selection::COMPUTED`]: `fan_in_fan_out` is true over GPT-2's `Conv1D`.
    pub fn computed(&self, base: &Base) -> Map<String, Value> {
        let targets = self.linears(base);
        // The last target decides, as in PEFT.
        let transposed = targets.is_ok_and(|it| it.last().is_some_and(|last| last.transposed));
        Map::from_iter([(FAN_IN_FAN_OUT.to_owned(), Value::Bool(transposed))])
    }

    /// What HF PEFT writes besides a choice of linear layers, as [`MethodConfig::peft_defaults`].
    ///
    /// [`MethodConfig::peft_defaults`]: crate::MethodConfig::peft_defaults
    pub fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("bias".to_owned(), "none".into()),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }

    fn matches(&self, modules: &Modules, path: &str) -> Result<bool, MethodError> {
        let matches = modules.matches(path);
        matches.map_err(|error| self.wrong_pattern(&error))
    }

    fn wrong_pattern(&self, error: &PatternError) -> MethodError {
        MethodError::Configuration {
            method: self.method,
            reason: format!("a module pattern cannot be used: {error}"),
        }
    }

    fn is_excluded(&self, path: &str) -> Result<bool, MethodError> {
        self.exclude_modules
            .map_or(Ok(false), |modules| self.matches(modules, path))
    }

    /// What is taken: as configured, or the default of the model's family.
    pub fn targets(&self, base: &Base) -> Modules {
        self.target_modules
            .cloned()
            .unwrap_or_else(|| Modules::endings((self.defaults)(base)))
    }
}

/// The last components of the paths of all linear layers, sorted.
fn available(base: &Base) -> Vec<String> {
    let names = base.linears().iter().filter_map(|linear| {
        let name = linear.site.path.rsplit('.').next()?;
        Some(name.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether a linear layer belongs to the task's head, which is trained whole with every method.
fn is_of_task_head(base: &Base, path: &str) -> bool {
    base.is_of_head(&format!("{path}.weight"))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::{HeadKind, Model, ModelConfig, random_model};
    use epiphyte_ops::Precision;

    use super::{ALL_LINEAR, Modules, Selection, ends_with};
    use crate::MethodError;

    #[test]
    fn endings_stop_at_dots() {
        assert!(ends_with(
            "bert.encoder.layer.0.output.dense",
            "output.dense"
        ));
        assert!(ends_with(
            "bert.encoder.layer.0.attention.output.dense",
            "output.dense"
        ));
        assert!(!ends_with("bert.encoder.layer.0.my_query", "query"));
        assert!(ends_with("classifier", "classifier"));
    }

    #[test]
    fn patterns_match_whole_paths() {
        let pattern = Modules::parse(r".*layer\.[01]\..*query");
        assert!(
            pattern
                .matches("bert.encoder.layer.1.attention.self.query")
                .unwrap()
        );
        assert!(
            !pattern
                .matches("bert.encoder.layer.1.attention.self.query.x")
                .unwrap()
        );
        assert_eq!(
            Modules::parse("query,value"),
            Modules::Endings(vec!["query".into(), "value".into()])
        );
    }

    fn llama() -> Model {
        let config =
            br#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}"#;
        let config = ModelConfig::parse("config.json".as_ref(), config).unwrap();
        let head = HeadKind::LanguageModel;
        random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap()
    }

    fn selection<'a>(targets: &'a Modules, layers: Option<&'a [usize]>) -> Selection<'a> {
        Selection {
            method: "lora",
            target_modules: Some(targets),
            exclude_modules: None,
            layers_to_transform: layers,
            layers_pattern: &[],
            defaults: |base| base.default_targets.lora,
        }
    }

    #[test]
    fn when_training_begins_every_name_matches_something() {
        let model = llama();
        let base = model.base();
        let misspelt = Modules::parse("q_proj,vproj");
        let misspelt = selection(&misspelt, None);
        assert_eq!(misspelt.of(base).unwrap().len(), 1);
        let Err(MethodError::Unmatched { key, unmatched, .. }) = misspelt.check_start(base) else {
            panic!("a name that matches nothing passed");
        };
        assert_eq!(
            (key, unmatched),
            ("target_modules", vec!["vproj".to_owned()])
        );

        let targets = Modules::parse("q_proj,v_proj");
        let layers = selection(&targets, Some(&[0, 9]));
        assert_eq!(layers.of(base).unwrap().len(), 2);
        let problem = layers.check_start(base).unwrap_err().to_string();
        assert_eq!(
            problem,
            "lora: `layers_to_transform` is 9, but the target modules are in layers 0"
        );
        // A tied head and tables may be left out by name, and that changes nothing.
        let excluded = Modules::parse("embed_tokens,k_proj");
        let excluded = Selection {
            exclude_modules: Some(&excluded),
            ..selection(&targets, None)
        };
        excluded.check_start(base).unwrap();
    }

    #[test]
    fn when_nothing_is_left_the_setting_that_leaves_nothing_is_named() {
        let model = llama();
        let base = model.base();
        let targets = Modules::parse("q_proj,v_proj");
        let none = selection(&targets, Some(&[7])).of(base).unwrap_err();
        assert!(
            none.to_string().contains("`layers_to_transform` is 7"),
            "{none}"
        );
        let excluded = Selection {
            exclude_modules: Some(&targets),
            ..selection(&targets, None)
        };
        let none = excluded.of(base).unwrap_err();
        assert!(none.to_string().contains("`exclude_modules` is"), "{none}");
        let pattern = ["blocks".to_owned()];
        let wrong = Selection {
            layers_pattern: &pattern,
            ..selection(&targets, Some(&[0]))
        };
        let none = wrong.of(base).unwrap_err();
        assert!(
            none.to_string().contains("`layers_pattern` is blocks"),
            "{none}"
        );
        let pattern = ["layers".to_owned()];
        let right = Selection {
            layers_pattern: &pattern,
            ..selection(&targets, Some(&[0]))
        };
        assert_eq!(right.of(base).unwrap().len(), 2);
    }

    #[test]
    fn embeddings_and_language_heads_are_refused_by_name() {
        let model = llama();
        let chosen = |targets: &str, exclude: Option<&str>| {
            let (targets, exclude) = (Modules::parse(targets), exclude.map(Modules::parse));
            let selection = Selection {
                method: "lora",
                target_modules: Some(&targets),
                exclude_modules: exclude.as_ref(),
                layers_to_transform: None,
                layers_pattern: &[],
                defaults: |base| base.default_targets.lora,
            };
            selection
                .of(model.base())
                .map(|chosen| chosen.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(chosen("q_proj,v_proj", None), Ok(2));
        assert_eq!(chosen(ALL_LINEAR, None), Ok(7));
        let table = chosen("q_proj,embed_tokens", None).unwrap_err();
        assert!(
            table.contains("`target_modules`") && table.contains("`model.embed_tokens` is a table"),
            "{table}"
        );
        let head = chosen("q_proj,lm_head", None).unwrap_err();
        assert!(
            head.contains("`lm_head` is the language model's head"),
            "{head}"
        );
        assert!(chosen(".*", None).is_err());
        assert_eq!(chosen(".*", Some("embed_tokens,lm_head")), Ok(7));
    }
}
