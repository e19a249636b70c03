//! The tensors that a method trains, stores, or derives from others.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_models::BaseTensor;
use epiphyte_models::adapter::name_id;
use epiphyte_ops::random;

/// How a parameter is initialized. Values are made when they are first asked for, so that counting
/// a method's parameters allocates nothing.
#[derive(Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each tensor, which is larger"
)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All the same value.
    Constant(f32),
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// The bound.
        bound: f64,
    },
    /// Normal with mean zero.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// Normal with mean zero, cut at two standard deviations.
    TruncatedNormal {
        /// The standard deviation before the cut.
        std: f64,
    },
    /// Given values, row-major.
    Values(Arc<[f32]>),
    /// A tensor of the base; a frozen matrix is read again rather than kept.
    Base(BaseTensor),
    /// What a function returns, row-major; called each time the initial values are needed.
    Computed(Arc<dyn Fn() -> Vec<f32> + Send + Sync>),
}

impl Init {
    /// Uniform in `±1/√fan_in`: PyTorch's `kaiming_uniform_(a=√5)`, with which its linear layers
    /// start.
    pub fn kaiming(fan_in: usize) -> Self {
        Self::Uniform {
            bound: 1.0 / (fan_in as f64).sqrt(),
        }
    }
}

impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zeros => "Zeros",
            Self::Ones => "Ones",
            Self::Constant(_) => "Constant",
            Self::Uniform { .. } => "Uniform",
            Self::Normal { .. } => "Normal",
            Self::TruncatedNormal { .. } => "TruncatedNormal",
            Self::Values(_) => "Values",
            Self::Base(_) => "Base",
            Self::Computed(_) => "Computed",
        })
    }
}

/// What the optimizer does differently for some parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamGroup {
    /// What the run's learning rate is multiplied by.
    pub learning_rate_scale: f64,
    /// Weight decay in place of the run's; biases and norms are not decayed unless this is given.
    pub weight_decay: Option<f64>,
    /// Whether its gradients count in, and are scaled by, the run's gradient clipping.
    pub clip: bool,
}

impl Default for ParamGroup {
    fn default() -> Self {
        Self {
            learning_rate_scale: 1.0,
            weight_decay: None,
            clip: true,
        }
    }
}

/// A tensor of a method. Clones are handles to the same tensor, so layers may share one.
///
/// Values are kept flat; [`Param::get`] gives them their shape. While the set that it belongs to is
/// tracked, a trained or derived tensor is a leaf of autodiff.
#[derive(Clone, Debug)]
pub struct Param(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: ParamId,
    key: String,
    shape: Vec<usize>,
    kind: ParamKind,
    group: ParamGroup,
    init: Init,
    seed: u64,
    device: Device,
    value: RwLock<Option<Tensor<1>>>,
}

/// What identifies a parameter in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(u64);

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Moved by the optimizer and stored.
    Trained,
    /// Stored, never moved: a frozen random projection.
    Constant,
    /// Computed from others once a step; neither moved nor stored.
    Derived,
    /// The same, but a constant to gradients.
    Detached,
}

impl Param {
    /// What identifies it in this process.
    pub fn id(&self) -> ParamId {
        self.0.id
    }

    /// The key under which files store it, without the prefix that all keys share.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// The number of values.
    pub fn count(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// What becomes of it.
    pub fn kind(&self) -> ParamKind {
        self.0.kind
    }

    /// What the optimizer does differently for it.
    pub fn group(&self) -> ParamGroup {
        self.0.group
    }

    /// The values as they are now, flat.
    pub fn flat(&self) -> Tensor<1> {
        if let Some(value) = &*self.0.value.read().expect("no holder of the lock panics") {
            return value.clone();
        }
        let mut slot = self.0.value.write().expect("no holder of the lock panics");
        slot.get_or_insert_with(|| self.initial()).clone()
    }

    /// The values as they are now, in shape.
    ///
    /// # Panics
    /// If `D` is not the rank.
    pub fn get<const D: usize>(&self) -> Tensor<D> {
        let shape: [usize; D] = self
            .0
            .shape
            .as_slice()
            .try_into()
            .expect("rank of the parameter");
        self.flat().reshape(shape)
    }

    /// The initial values, flat and without autodiff.
    ///
    /// # Panics
    /// If given or computed values do not fill the shape.
    pub fn initial(&self) -> Tensor<1> {
        let (key, count, device) = (self.key(), self.count(), &self.0.device);
        let tensor = |values: Vec<f32>| {
            assert_eq!(values.len(), count, "`{key}` has shape {:?}", self.shape());
            Tensor::from_data(TensorData::new(values, [count]), device)
        };
        let draw = self.0.seed ^ name_id(key);
        match &self.0.init {
            Init::Zeros => tensor(vec![0.0; count]),
            Init::Ones => tensor(vec![1.0; count]),
            Init::Constant(value) => tensor(vec![*value; count]),
            Init::Uniform { bound } => tensor(random::uniform(draw, count, -bound, *bound)),
            Init::Normal { std } => tensor(random::normal(draw, count, *std)),
            Init::TruncatedNormal { std } => tensor(random::truncated_normal(draw, count, *std)),
            Init::Values(values) => tensor(values.to_vec()),
            Init::Base(base) => base.to_unquantized_flat(),
            Init::Computed(compute) => tensor(compute()),
        }
    }

    /// Puts the initial values back.
    pub fn rewind(&self) {
        self.set(self.initial());
    }

    /// Puts other values, flat and without autodiff, in place.
    pub fn set(&self, value: Tensor<1>) {
        let mut slot = self.0.value.write().expect("no holder of the lock panics");
        let tracked = slot.as_ref().is_some_and(Tensor::is_autodiff);
        *slot = Some(leaf(value, tracked));
    }

    /// Puts other values, row-major, in place.
    ///
    /// # Panics
    /// If they do not fill the shape.
    pub fn set_values(&self, values: Vec<f32>) {
        assert_eq!(values.len(), self.count(), "`{}`", self.key());
        let data = TensorData::new(values, [self.count()]);
        self.set(Tensor::from_data(data, &self.0.device));
    }

    /// Replaces the values, flat and without autodiff, by the result of `change`. `change` is their
    /// only holder, so it may work in place.
    pub fn update(&self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        let mut slot = self.0.value.write().expect("no holder of the lock panics");
        let value = slot.take().unwrap_or_else(|| self.initial());
        let tracked = value.is_autodiff();
        *slot = Some(leaf(change(value.inner()), tracked));
    }

    fn track(&self, tracked: bool) {
        let mut slot = self.0.value.write().expect("no holder of the lock panics");
        let plain = slot.take().unwrap_or_else(|| self.initial()).inner();
        let learns = matches!(self.0.kind, ParamKind::Trained | ParamKind::Derived);
        *slot = Some(leaf(plain, tracked && learns));
    }

    /// The values as they are now, in memory, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        let values = self.flat().inner().try_into_vec_as::<f32>();
        values.expect("parameters are f32 and on a device that can be read")
    }
}

/// Values without autodiff as they are kept: a leaf of autodiff, if they are tracked.
fn leaf(value: Tensor<1>, tracked: bool) -> Tensor<1> {
    match tracked {
        true => value.autodiff().require_grad(),
        false => value,
    }
}

/// A derived parameter with its computation.
struct Derived {
    param: Param,
    compute: Box<dyn Fn() -> Tensor<1> + Send + Sync>,
    /// The computation's result with its autodiff graph, during a step.
    graph: Mutex<Option<Tensor<1>>>,
}

impl fmt::Debug for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.param.fmt(f)
    }
}

/// All tensors of a method, in the order in which they were declared.
#[derive(Debug)]
pub struct ParameterSet {
    device: Device,
    seed: u64,
    params: Vec<Param>,
    /// Trained ones that files hold in another form.
    unstored: Vec<ParamId>,
    /// Other keys under which files hold a tensor of the set too.
    copies: Vec<(String, Param)>,
    derived: Vec<Derived>,
}

impl ParameterSet {
    /// An empty set. What a parameter draws at random depends on `seed` and its key alone.
    pub fn new(device: &Device, seed: u64) -> Self {
        Self {
            device: device.clone().inner(),
            seed,
            params: Vec::new(),
            unstored: Vec::new(),
            copies: Vec::new(),
            derived: Vec::new(),
        }
    }

    /// Declares a trained tensor.
    ///
    /// # Panics
    /// If the key is declared already.
    pub fn declare(&mut self, key: impl Into<String>, shape: &[usize], init: Init) -> Param {
        self.declare_in(ParamGroup::default(), key, shape, init)
    }

    /// Declares a trained tensor for which the optimizer has rules of its own.
    ///
    /// # Panics
    /// If the key is declared already.
    pub fn declare_in(
        &mut self,
        group: ParamGroup,
        key: impl Into<String>,
        shape: &[usize],
        init: Init,
    ) -> Param {
        let param = self.new_param(key.into(), shape, ParamKind::Trained, group, init);
        self.params.push(param.clone());
        param
    }

    /// Declares a trained tensor that the method stores in a form of its own.
    ///
    /// # Panics
    /// If the key is declared already.
    pub fn declare_unstored(
        &mut self,
        key: impl Into<String>,
        shape: &[usize],
        init: Init,
    ) -> Param {
        let param = self.declare(key, shape, init);
        self.unstored.push(param.id());
        param
    }

    /// Declares a tensor that is stored and never moved, such as a frozen random projection.
    ///
    /// # Panics
    /// If the key is declared already.
    pub fn constant(&mut self, key: impl Into<String>, shape: &[usize], init: Init) -> Param {
        let group = ParamGroup::default();
        let param = self.new_param(key.into(), shape, ParamKind::Constant, group, init);
        self.params.push(param.clone());
        param
    }

    /// Says that files hold a tensor of the set under another key too, as those of HF PEFT hold
    /// what modules share once for each of them. A file may lack these copies.
    pub(crate) fn copy_in_file(&mut self, key: impl Into<String>, param: &Param) {
        self.copies.push((key.into(), param.clone()));
    }

    /// The other keys of tensors in files.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.copies.iter().map(|(key, param)| (key.as_str(), param))
    }

    /// Declares a tensor that is computed from other parameters of the set.
    ///
    /// It is computed once a step, before the first forward pass; its gradient is carried back to
    /// the parameters that `compute` reads after the last backward pass. So layers and
    /// micro-batches may share it. `compute` returns it flat.
    ///
    /// # Panics
    /// If the key is declared already.
    pub fn derived(
        &mut self,
        key: impl Into<String>,
        shape: &[usize],
        compute: impl Fn() -> Tensor<1> + Send + Sync + 'static,
    ) -> Param {
        self.computed(ParamKind::Derived, key.into(), shape, compute)
    }

    /// Declares a tensor that is computed from other parameters of the set as in
    /// [`ParameterSet::derived`], and whose gradient is not carried back to them.
    ///
    /// # Panics
    /// If the key is declared already.
    pub fn detached(
        &mut self,
        key: impl Into<String>,
        shape: &[usize],
        compute: impl Fn() -> Tensor<1> + Send + Sync + 'static,
    ) -> Param {
        self.computed(ParamKind::Detached, key.into(), shape, compute)
    }

    fn computed(
        &mut self,
        kind: ParamKind,
        key: String,
        shape: &[usize],
        compute: impl Fn() -> Tensor<1> + Send + Sync + 'static,
    ) -> Param {
        let param = self.new_param(key, shape, kind, ParamGroup::default(), Init::Zeros);
        let value = compute().inner();
        assert_eq!(value.dims(), [param.count()], "`{}`", param.key());
        param.set(value);
        self.derived.push(Derived {
            param: param.clone(),
            compute: Box::new(compute),
            graph: Mutex::default(),
        });
        param
    }

    fn new_param(
        &self,
        key: String,
        shape: &[usize],
        kind: ParamKind,
        group: ParamGroup,
        init: Init,
    ) -> Param {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        assert!(self.get(&key).is_none(), "`{key}` is declared twice");
        Param(Arc::new(Inner {
            id: ParamId(NEXT.fetch_add(1, Ordering::Relaxed)),
            key,
            shape: shape.to_vec(),
            kind,
            group,
            init,
            seed: self.seed,
            device: self.device.clone(),
            value: RwLock::default(),
        }))
    }

    /// Turns gradients of all trained parameters on or off.
    pub fn track(&self, tracked: bool) {
        for param in &self.params {
            param.track(tracked);
        }
        self.derive(tracked);
    }

    /// Computes the derived and detached parameters anew: the derived ones with their autodiff
    /// graph for a step, or without.
    pub fn derive(&self, for_step: bool) {
        for derived in &self.derived {
            let value = (derived.compute)();
            derived.param.set(value.clone().inner());
            derived.param.track(for_step);
            let has_graph = for_step && derived.param.kind() == ParamKind::Derived;
            *derived.graph.lock().expect("no holder of the lock panics") =
                has_graph.then_some(value);
        }
    }

    /// The derived parameters, each with the graph of its computation if that is recorded; the
    /// graph is handed out once.
    pub(crate) fn take_derived(&self) -> impl Iterator<Item = (&Param, Tensor<1>)> {
        self.derived.iter().rev().filter_map(|derived| {
            let mut graph = derived.graph.lock().expect("no holder of the lock panics");
            Some((&derived.param, graph.take()?))
        })
    }

    /// The parameter of a key.
    pub fn get(&self, key: &str) -> Option<&Param> {
        let derived = self.derived.iter().map(|derived| &derived.param);
        self.params
            .iter()
            .chain(derived)
            .find(|param| param.key() == key)
    }

    /// The trained parameters.
    pub fn trained(&self) -> impl Iterator<Item = &Param> {
        let params = self.params.iter();
        params.filter(|param| param.kind() == ParamKind::Trained)
    }

    /// The trained parameters and the constants, which files hold.
    pub fn stored(&self) -> impl Iterator<Item = &Param> {
        let is_stored = |param: &&Param| !self.unstored.contains(&param.id());
        self.params.iter().filter(is_stored)
    }

    /// The derived parameters.
    pub fn derived_params(&self) -> impl Iterator<Item = &Param> {
        self.computed_params(ParamKind::Derived)
    }

    /// The detached parameters.
    pub fn detached_params(&self) -> impl Iterator<Item = &Param> {
        self.computed_params(ParamKind::Detached)
    }

    fn computed_params(&self, kind: ParamKind) -> impl Iterator<Item = &Param> {
        let params = self.derived.iter().map(|derived| &derived.param);
        params.filter(move |param| param.kind() == kind)
    }

    /// Takes up the tensors of a part: the part keeps handles to those that are trained or
    /// constant, and computes none any more.
    ///
    /// # Errors
    /// The key that both have declared.
    pub(crate) fn take_up(&mut self, part: &mut Self) -> Result<(), String> {
        let computed = part.derived.iter().map(|derived| &derived.param);
        let mut declared = part.params.iter().chain(computed);
        if let Some(param) = declared.find(|param| self.get(param.key()).is_some()) {
            return Err(param.key().to_owned());
        }
        self.params.extend(part.params.iter().cloned());
        self.unstored.append(&mut part.unstored);
        self.copies.append(&mut part.copies);
        self.derived.append(&mut part.derived);
        Ok(())
    }

    /// The number of values of all trained parameters.
    pub fn count(&self) -> usize {
        self.trained().map(Param::count).sum()
    }

    /// The seed from which methods draw what is not a parameter.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
