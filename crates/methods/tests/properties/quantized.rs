//! Methods over a base whose linear layers are quantized.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_methods::AdapterModule;
use epiphyte_models::families::FAMILIES;
use epiphyte_models::quantized::Stored;
use epiphyte_models::{Base, Builder, ModelConfig, ModelError, Source};
use epiphyte_ops::quantized::{Format, QuantizedWeight};

use crate::support::{TestModel, bert, cases, llama, model, perturb};

/// The tensors of a base, with its linear layers below the head in NF4: as they are, or decoded.
struct Quantized<'a> {
    base: &'a Base,
    decoded: bool,
}

impl Quantized<'_> {
    /// The weight `[out, in]` of a linear layer below the head.
    fn weight(&self, name: &str) -> Option<QuantizedWeight> {
        let is_linear = |path: &str| {
            let mut linears = self.base.linears().iter();
            linears.any(|it| it.site.path == path && it.site.layer.is_some())
        };
        name.strip_suffix(".weight")
            .filter(|path| is_linear(path))?;
        let matrix = self.base.tensor(name)?.to_matrix()?;
        let [out, input] = matrix.dims();
        let values = matrix.try_into_vec_as::<f32>().unwrap();
        let rows = |rows: Range<usize>| &values[rows.start * input..rows.end * input];
        Some(QuantizedWeight::quantize(rows, [out, input], Format::Nf4))
    }
}

impl Source for Quantized<'_> {
    fn open(
        &mut self,
        name: &str,
        _shape: &[usize],
    ) -> Result<Arc<epiphyte_ops::Source>, ModelError> {
        let tensor = self.base.tensor(name).expect("a tensor of the base");
        let values = match self.weight(name) {
            Some(weight) => {
                let [out, input] = weight.shape();
                let mut values = vec![0.0; out * input];
                weight.decode(0, &mut values);
                let data = TensorData::new(values, [out, input]);
                let flat = tensor.flatten(Tensor::from_data(data, &Device::default()));
                flat.try_into_vec_as::<f32>().unwrap()
            }
            None => tensor.to_vec(),
        };
        Ok(Arc::new(move |range| values[range].to_vec()))
    }

    fn quantized(&mut self, name: &str, _shape: [usize; 2]) -> Result<Option<Stored>, ModelError> {
        let weight = self.weight(name).filter(|_| !self.decoded);
        Ok(weight.map(Stored::from))
    }
}

fn rebuilt(on: &TestModel, decoded: bool) -> TestModel {
    let base = on.model.base();
    let model_type = &base.dimensions.model_type;
    let mut configs = FAMILIES.iter().flat_map(|family| (family.examples)());
    let config = configs.find(|config| config["model_type"] == model_type.as_str());
    let text = config.expect("a registered family").to_string();
    let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
    let mut source = Quantized { base, decoded };
    let builder = Builder::new(&mut source, &Device::default(), Default::default());
    TestModel {
        name: format!("{}, quantized", on.name),
        model: config.family().build(on.head, true, builder).unwrap(),
        head: on.head,
    }
}

/// A method computes the same, to the last bit, over a quantized base and over what it decodes to.
#[test]
fn a_quantized_base_is_what_it_decodes_to() {
    let heads = model("gpt2", bert().head);
    for on in [bert(), llama(), heads] {
        let [quantized, decoded] = [false, true].map(|decoded| rebuilt(&on, decoded));
        assert!(quantized.model.base().quantization().is_some());
        assert!(decoded.model.base().quantization().is_none());
        for case in cases() {
            let name = format!("{} {} on {}", case.method, case.settings, quantized.name);
            let (module, other) = match (case.tune(&quantized), case.tune(&decoded)) {
                (Ok(module), Ok(other)) => (module, other),
                (module, other) => {
                    // What a method cannot do, it cannot do over equal values either.
                    let [module, other] = [module, other].map(|it| it.map(|_| ()).unwrap_err());
                    assert_eq!(module.to_string(), other.to_string(), "{name}");
                    continue;
                }
            };
            perturb(&module);
            perturb(&other);
            let outputs = quantized.output(&module, None);
            assert_eq!(outputs, decoded.output(&other, None), "{name}");
            let of = |on: &TestModel, module: &AdapterModule| {
                let gradients = on.gradients(module);
                let of = |param| gradients.get(param).map(|it| it.to_data());
                module.trained().map(of).collect::<Vec<_>>()
            };
            assert_eq!(of(&quantized, &module), of(&decoded, &other), "{name}");
        }
    }
}
