//! The tensors of an adapter's file, each used once or named in an error.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use epiphyte_models::checkpoint::TensorView;
use epiphyte_models::{Base, Checkpoint, Role};

use crate::MethodError;
use crate::framework::method::{KeyStyle, StoredTensors};

/// What PEFT puts around a module that it wraps; the file's names may have it.
const WRAPPER: &str = ".base_layer.";
/// How the names of trained rows of a table end.
const TOKEN_ROWS: &str = ".token_adapter.trainable_tokens_delta";

/// Matches the tensors of a file with the keys that a method asks for.
pub(super) struct TensorMatcher<'c> {
    checkpoint: &'c Checkpoint,
    base_prefix: &'static str,
    used: Vec<String>,
    missing: Vec<String>,
    misshapen: Vec<String>,
}

/// Tensors of the method or of the head, whose keys have this prefix in the file.
pub(super) struct Prefixed<'m, 'c> {
    pub(super) prefix: &'m dyn Fn(&str) -> &'static str,
    pub(super) matcher: &'m RefCell<TensorMatcher<'c>>,
}

/// Whole tensors of the base, by their names: where each is in the file.
pub(super) struct Whole<'m, 'c> {
    pub(super) base: &'m Base,
    pub(super) names: &'m BTreeMap<String, Place>,
    pub(super) matcher: &'m RefCell<TensorMatcher<'c>>,
}

/// Where the values of a tensor are in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    /// All of them under this name.
    All(String),
    /// Those of these rows under this name; the others are the base's.
    Rows(String, Vec<usize>),
}

impl StoredTensors for Prefixed<'_, '_> {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let matcher = self.matcher.borrow();
        let name = matcher.stored_name((self.prefix)(key), key)?;
        let view = matcher.checkpoint.tensor(&name)?;
        Some(view.shape.to_vec())
    }

    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError> {
        let mut matcher = self.matcher.borrow_mut();
        match matcher.find((self.prefix)(key), key) {
            Some(name) => matcher.values(&name, shape),
            None => Ok(None),
        }
    }

    fn take_indices(&mut self, key: &str) -> Result<Option<Vec<i32>>, MethodError> {
        let mut matcher = self.matcher.borrow_mut();
        let Some(name) = matcher.find((self.prefix)(key), key) else {
            return Ok(None);
        };
        let view = matcher.checkpoint.tensor(&name);
        let indices = view.as_ref().and_then(TensorView::to_i32);
        if indices.is_none() {
            let problem = format!("{name} is not a vector of 32-bit integers");
            matcher.misshapen.push(problem);
        }
        Ok(indices)
    }

    fn take_integers(
        &mut self,
        key: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<i64>>, MethodError> {
        let mut matcher = self.matcher.borrow_mut();
        let Some(name) = matcher.find((self.prefix)(key), key) else {
            return Ok(None);
        };
        let view = matcher.checkpoint.tensor(&name);
        let fits = view.filter(|view| view.shape == shape);
        let integers = fits.as_ref().and_then(TensorView::to_integers);
        if integers.is_none() {
            let problem = format!("{name}, expected integers of shape {shape:?}");
            matcher.misshapen.push(problem);
        }
        Ok(integers)
    }
}

impl StoredTensors for Whole<'_, '_> {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let matcher = self.matcher.borrow();
        let (Place::All(name) | Place::Rows(name, _)) = self.names.get(key)?;
        let view = matcher.checkpoint.tensor(name)?;
        Some(view.shape.to_vec())
    }

    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError> {
        let mut matcher = self.matcher.borrow_mut();
        match (self.names.get(key), self.base.tensor(key)) {
            (Some(Place::All(name)), _) => {
                matcher.used.push(name.clone());
                matcher.values(name, shape)
            }
            (Some(Place::Rows(name, rows)), Some(table)) => {
                matcher.used.push(name.clone());
                let width = shape.last().copied().unwrap_or_default();
                let Some(changed) = matcher.values(name, &[rows.len(), width])? else {
                    return Ok(None);
                };
                let mut values = table.to_vec();
                for (row, changed) in rows.iter().zip(changed.chunks(width)) {
                    let row = values.get_mut(row * width..(row + 1) * width);
                    if let Some(row) = row {
                        row.copy_from_slice(changed);
                    }
                }
                Ok(Some(values))
            }
            _ => Ok(None),
        }
    }

    fn take_indices(&mut self, _key: &str) -> Result<Option<Vec<i32>>, MethodError> {
        Ok(None)
    }

    fn take_integers(
        &mut self,
        _key: &str,
        _shape: &[usize],
    ) -> Result<Option<Vec<i64>>, MethodError> {
        Ok(None)
    }
}

impl<'c> TensorMatcher<'c> {
    pub(super) fn new(checkpoint: &'c Checkpoint, base: &Base) -> Self {
        Self {
            checkpoint,
            base_prefix: base.prefix,
            used: Vec::new(),
            missing: Vec::new(),
            misshapen: Vec::new(),
        }
    }

    /// The name of a tensor, which counts as used; a missing one is noted.
    fn find(&mut self, prefix: &str, key: &str) -> Option<String> {
        let name = self.stored_name(prefix, key);
        match &name {
            Some(name) => self.used.push(name.clone()),
            None => self.missing.push(format!("{prefix}{key}")),
        }
        name
    }

    /// The values of a tensor of this shape; another shape is noted.
    fn values(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError> {
        let found = self.checkpoint.tensor(name);
        let found = found.map(|view| view.shape.to_vec()).unwrap_or_default();
        if found != shape {
            let problem = format!("{name} {found:?}, expected {shape:?}");
            self.misshapen.push(problem);
            return Ok(None);
        }
        let values = self.checkpoint.to_f32(name, shape)?;
        if values.iter().all(|value| value.is_finite()) {
            return Ok(Some(values));
        }
        Err(MethodError::Malformed {
            path: self.checkpoint.path().to_owned(),
            reason: format!(
                "`{name}` has values that are infinite or no numbers: its training failed, so take \
                 an earlier checkpoint or train again with a lower learning rate"
            ),
        })
    }

    /// A key as the file spells it: over a base without head, PEFT's paths lack the base's own
    /// prefix.
    fn stored_name(&self, prefix: &str, key: &str) -> Option<String> {
        let full = format!("{prefix}{key}");
        let bare = key.strip_prefix(self.base_prefix);
        let bare = bare.map(|rest| format!("{prefix}{rest}"));
        std::iter::once(full)
            .chain(bare)
            .find(|name| self.checkpoint.contains(name))
    }

    /// Counts a tensor as used.
    pub(super) fn use_up(&mut self, name: &str) {
        self.used.push(name.to_owned());
    }

    /// Notes that the file has nothing for `what`.
    pub(super) fn miss(&mut self, what: String) {
        self.missing.push(what);
    }

    /// Ends the matching of the file at `path`.
    ///
    /// # Errors
    /// [`MethodError::Tensors`] if a tensor is missing, was not asked for, or has another shape.
    pub(super) fn finish(self, path: &Path) -> Result<(), MethodError> {
        let unexpected: Vec<String> = self
            .checkpoint
            .names()
            .filter(|name| !self.used.iter().any(|used| used == name) && !leaked(name))
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && self.misshapen.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        Err(MethodError::Tensors {
            path: path.to_owned(),
            missing: self.missing,
            unexpected,
            misshapen: self.misshapen,
        })
    }
}

/// Whether PEFT leaks this tensor beside a saved module when biases are saved as well.
fn leaked(name: &str) -> bool {
    name.contains(".original_module.") || name.contains(".modules_to_save.")
}

/// The tensors of a file that are whole tensors of the base.
#[derive(Debug, Default)]
pub(super) struct WholeTensors {
    /// By the base's names, where they are in the file.
    pub(super) names: BTreeMap<String, Place>,
    /// Copies of tied weights, by the file's names.
    pub(super) copies: Vec<String>,
}

/// Finds the whole tensors of the base in a file, apart from the task's head: what PEFT saves for
/// `modules_to_save`, `bias`, a vocabulary that grew, and `trainable_token_indices`, which `tokens`
/// gives for the path of a table.
///
/// # Errors
/// [`MethodError::Malformed`] if a tensor has another shape than the base's, rows are not the
/// base's, or a copy of tied weights has gone its own way.
pub(super) fn whole_tensors(
    checkpoint: &Checkpoint,
    keys: KeyStyle,
    base: &Base,
    tokens: &dyn Fn(&str) -> Option<Vec<usize>>,
) -> Result<WholeTensors, MethodError> {
    let malformed = |reason: String| MethodError::Malformed {
        path: checkpoint.path().to_owned(),
        reason,
    };
    let mut whole = WholeTensors::default();
    for name in checkpoint.names().filter(|name| !leaked(name)) {
        let Some(path) = name.strip_prefix(keys.head_prefix()) else {
            continue;
        };
        if let Some(table) = path.strip_suffix(TOKEN_ROWS) {
            let spellings = [table.to_owned(), format!("{}{table}", base.prefix)];
            let found = spellings.into_iter().find_map(|path| {
                let name = format!("{path}.weight");
                let rows = *base.tensor(&name)?.shape().first()?;
                Some((name, rows, tokens(&path)?))
            });
            if let Some((table, rows, indices)) = found {
                if let Some(index) = indices.iter().find(|index| **index >= rows) {
                    return Err(malformed(format!(
                        "`trainable_token_indices` has {index}, but `{table}` has {rows} rows"
                    )));
                }
                whole
                    .names
                    .insert(table, Place::Rows(name.to_owned(), indices));
            }
            continue;
        }
        let path = path.replace(WRAPPER, ".");
        let spellings = [path.clone(), format!("{}{path}", base.prefix)];
        if is_tied_head(&path, base) {
            whole.copies.push(name.to_owned());
        }
        let of_base = spellings.iter().find(|it| base.tensor(it).is_some());
        let Some(of_base) = of_base.filter(|it| !base.is_of_head(it)) else {
            continue;
        };
        let expected = base.tensor(of_base).map(|tensor| tensor.shape());
        let expected = expected.unwrap_or_default();
        let found = checkpoint.tensor(name).map(|view| view.shape.to_vec());
        let found = found.unwrap_or_default();
        match (&expected[..], &found[..]) {
            _ if expected == found => {}
            ([rows, columns], [others, same]) if same == columns => {
                return Err(malformed(format!(
                    "`{name}` has {others} rows, but the base's `{of_base}` has {rows}: the \
                     vocabulary was resized before the adapter was trained; resize the base in the \
                     same way, in Python: model.resize_token_embeddings({others}), then \
                     save_pretrained, with the tokenizer that has the new tokens"
                )));
            }
            _ => {
                return Err(malformed(format!(
                    "`{name}` has the shape {found:?}, but the base's `{of_base}` has {expected:?}"
                )));
            }
        }
        whole
            .names
            .insert(of_base.clone(), Place::All(name.to_owned()));
    }
    for copy in &whole.copies {
        let words = whole.names.get(&base.word_embeddings);
        let same = match words {
            Some(Place::All(words)) => checkpoint.tensor(words) == checkpoint.tensor(copy),
            _ => {
                let table = base.tensor(&base.word_embeddings);
                let copied = checkpoint.tensor(copy).and_then(|view| view.to_f32());
                table.map(|table| table.to_vec()) == copied
            }
        };
        if !same {
            return Err(malformed(format!(
                "`{copy}` differs from the embeddings, but the base ties the two: untie it first, in \
                 Python: give model.lm_head.weight its own copy, set tie_word_embeddings to false and \
                 call save_pretrained"
            )));
        }
    }
    Ok(whole)
}

/// Whether a tensor would be the weight of a head that is tied to the embeddings.
fn is_tied_head(name: &str, base: &Base) -> bool {
    let path = name.strip_suffix(".weight");
    let is_head = |path| {
        let linears = base.linears();
        linears
            .iter()
            .any(|it| it.site.role == Role::Head && it.site.path == path)
    };
    base.tensor(name).is_none() && path.is_some_and(is_head)
}
