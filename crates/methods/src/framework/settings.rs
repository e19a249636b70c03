//! Settings stated once: field, default, range, flag, help text and key of one setting in one
//! place.
//!
//! [`settings!`](crate::settings!) declares a struct whose fields are settings. The configurations
//! of the methods and the configuration of a run are declared with it; the command line, files and
//! checks read what it generates through the trait [`Settings`].

use std::fmt;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::framework::targets::Modules;

/// A group of settings, declared with [`settings!`](crate::settings!).
pub trait Settings:
    Serialize + DeserializeOwned + Default + Clone + fmt::Debug + Send + Sync + 'static
{
    /// A flag for each setting, in the order of declaration.
    const FLAGS: &'static [Flag];

    /// Sets one value, by key, flag or alias; `false` if there is no such setting.
    ///
    /// # Errors
    /// [`SettingError::Type`] if the value is of the wrong type.
    fn set(&mut self, name: &str, value: &Value) -> Result<bool, SettingError>;

    /// Checks the range of each value.
    ///
    /// # Errors
    /// [`SettingError::Range`] for the first value that is out of range.
    fn check(&self) -> Result<(), SettingError>;
}

/// The defaults, with `given` in their place.
///
/// # Errors
/// [`SettingError::Unknown`] or [`SettingError::Type`], which name the key.
pub fn parse<S: Settings>(given: &Map<String, Value>) -> Result<S, SettingError> {
    let mut settings = S::default();
    for (name, value) in given {
        if !settings.set(name, value)? {
            let known: Vec<&str> = S::FLAGS.iter().map(|flag| flag.key).collect();
            return Err(SettingError::Unknown {
                name: name.clone(),
                known: known.join(", "),
            });
        }
    }
    Ok(settings)
}

/// Settings that another part of the program checks: every key is accepted.
impl Settings for Map<String, Value> {
    const FLAGS: &'static [Flag] = &[];

    fn set(&mut self, name: &str, value: &Value) -> Result<bool, SettingError> {
        self.insert(name.to_owned(), value.clone());
        Ok(true)
    }

    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

/// Why a value cannot be a setting.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SettingError {
    /// No setting has this name.
    #[error("there is no setting `{name}`; known are {known}")]
    Unknown {
        /// The name that was given.
        name: String,
        /// The keys that exist, separated by commas.
        known: String,
    },
    /// A value of the wrong type.
    #[error("`{key}`: {problem}")]
    Type {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A value out of range.
    #[error("`{key}` is {value}, but it must be {range}")]
    Range {
        /// The key.
        key: &'static str,
        /// The value.
        value: f64,
        /// The values that are allowed.
        range: Range,
    },
}

/// A setting as the command line and files see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag, without dashes in front.
    pub flag: &'static str,
    /// The configuration's key.
    pub key: &'static str,
    /// Former names of the flag; accepted, but not shown.
    pub aliases: &'static [&'static str],
    /// What it means, for `--help`.
    pub help: &'static str,
    /// What it takes.
    pub kind: FlagKind,
    /// What happens if it is not given, where the default is no number and no text.
    pub unset: Option<&'static str>,
}

impl Flag {
    /// Whether `name` is the key, the flag or an alias, with dashes or underscores.
    pub fn is_called(&self, name: &str) -> bool {
        let same = |other: &str| {
            let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
            other.bytes().map(dashed).eq(name.bytes().map(dashed))
        };
        same(self.flag) || same(self.key) || self.aliases.iter().any(|alias| same(alias))
    }

    /// The flag as a key of a file, with `_` for `-`: `rank`, where HF PEFT's key is `r`.
    pub fn name(&self) -> String {
        match self.flag {
            "" => self.key.to_owned(),
            flag => flag.replace('-', "_"),
        }
    }

    /// The default for `--help`, out of all `defaults`; none if there is nothing to say.
    pub fn default_text(&self, defaults: &Map<String, Value>) -> Option<String> {
        match (defaults.get(self.key), self.unset) {
            (Some(Value::Number(number)), _) => match number.as_f64() {
                Some(float) if float.fract() == 0.0 => Some(format!("{float}")),
                _ => Some(number.to_string()),
            },
            (Some(Value::String(text)), _) if !text.is_empty() => Some(text.clone()),
            (_, Some(unset)) => Some(unset.to_owned()),
            (Some(Value::Bool(value)), None) => Some(value.to_string()),
            _ => None,
        }
    }
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagKind {
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// Nothing: its presence says true.
    Switch,
    /// `true` or `false`: for what is on by default.
    Boolean,
    /// A text.
    Text,
    /// Texts separated by commas.
    Texts,
    /// Module names separated by commas, a regular expression, or `all-linear`.
    Modules,
    /// Whole numbers separated by commas.
    Integers,
    /// `name=number` pairs separated by commas.
    Pattern,
    /// Values by name, of any kind.
    Table,
}

impl FlagKind {
    /// What its values are, for messages: `a whole number`.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Integer => "a whole number, 0 or more",
            Self::Number => "a number",
            Self::Switch | Self::Boolean => "true or false",
            Self::Text => "a text",
            Self::Texts => "a list of texts",
            Self::Modules => "a list of texts, or one text",
            Self::Integers => "a list of whole numbers",
            Self::Pattern => "a table of numbers",
            Self::Table => "a table",
        }
    }

    /// Whether a value of a file is of this kind. Choices among texts may have other spellings,
    /// such as `true`.
    pub fn fits(self, value: &Value) -> bool {
        let list_of =
            |of: fn(&Value) -> bool| value.as_array().is_some_and(|items| items.iter().all(of));
        match self {
            Self::Integer => value.is_u64(),
            Self::Number => value.is_number(),
            Self::Switch | Self::Boolean => value.is_boolean(),
            Self::Text => value.is_string() || value.is_boolean(),
            Self::Texts => list_of(Value::is_string),
            Self::Modules => value.is_string() || list_of(Value::is_string),
            Self::Integers => list_of(Value::is_u64),
            Self::Table => value.is_object(),
            Self::Pattern => value
                .as_object()
                .is_some_and(|pattern| pattern.values().all(Value::is_number)),
        }
    }
}

/// The largest dimension of a tensor that a setting may ask for; no method needs more.
pub const LARGEST_SIZE: usize = 1 << 16;

/// The values that a number may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Greater than 0.
    Positive,
    /// 1 or more.
    AtLeastOne,
    /// A dimension of a tensor: from 1 to [`LARGEST_SIZE`].
    Size,
    /// 0 or more.
    NotNegative,
    /// From 0 to 1, without 1.
    Fraction,
    /// A number that is finite in single precision, in which kernels compute: every one is.
    SinglePrecision,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Positive => "greater than 0",
            Self::AtLeastOne => "at least 1",
            Self::Size => return write!(f, "at most {LARGEST_SIZE}"),
            Self::NotNegative => "0 or more",
            Self::Fraction => "in [0, 1), and below 1 in single precision",
            Self::SinglePrecision => "below 3.4e38, the largest number of single precision",
        })
    }
}

impl Range {
    /// Checks a number; what is not given is in every range.
    ///
    /// # Errors
    /// [`SettingError::Range`].
    pub fn check(self, key: &'static str, value: &impl SettingType) -> Result<(), SettingError> {
        let Some(value) = value.number() else {
            return Ok(());
        };
        let fits = match self {
            Self::Positive => value > 0.0,
            Self::AtLeastOne => value >= 1.0,
            Self::Size => (1.0..=LARGEST_SIZE as f64).contains(&value),
            Self::NotNegative => value >= 0.0,
            // Kernels compute in single precision, in which numbers just below 1 are 1.
            Self::Fraction => (0.0..1.0).contains(&(value as f32)),
            Self::SinglePrecision => true,
        };
        let is_finite = (value as f32).is_finite();
        if fits && is_finite {
            return Ok(());
        }
        // Which end of its range it misses.
        let range = match self {
            Self::Size if value < 1.0 => Self::AtLeastOne,
            _ if fits && !is_finite => Self::SinglePrecision,
            range => range,
        };
        Err(SettingError::Range { key, value, range })
    }
}

/// A type of settings whose flag's kind is clear from the type.
pub trait SettingType {
    /// What its flag takes.
    const KIND: FlagKind;

    /// The value as a number, if it is one and given.
    fn number(&self) -> Option<f64> {
        None
    }
}

impl<T: SettingType> SettingType for Option<T> {
    const KIND: FlagKind = T::KIND;

    fn number(&self) -> Option<f64> {
        self.as_ref()?.number()
    }
}

impl<T> SettingType for IndexMap<String, T> {
    const KIND: FlagKind = FlagKind::Pattern;
}

macro_rules! setting_types {
    ($($type:ty: $kind:ident $(($number:expr))?;)+) => {
        $(impl SettingType for $type {
            const KIND: FlagKind = FlagKind::$kind;

            $(fn number(&self) -> Option<f64> {
                let number: fn(Self) -> f64 = $number;
                Some(number(*self))
            })?
        })+
    };
}

setting_types! {
    f64: Number (|value| value);
    u32: Integer (f64::from);
    u64: Integer (|value| value as f64);
    usize: Integer (|value| value as f64);
    bool: Switch;
    String: Text;
    PathBuf: Text;
    Vec<String>: Texts;
    Vec<usize>: Integers;
    Modules: Modules;
}

/// Declares a group of settings.
///
/// ```
/// epiphyte_methods::settings! {
///     /// The settings of an example.
///     pub struct Example {
///         /// Rank of the update.
///         r: usize = 8, flag "rank", in AtLeastOne;
///         /// Largest input in tokens.
///         max_length: Option<usize> = None, alias "length", in Positive,
///             unset "the model's limit";
///         /// Initial values: zero or random.
///         init: String = "zero".to_owned(), as Text;
///
///         ..targets: epiphyte_methods::framework::targets::TargetModules = Default::default();
///     }
/// }
/// use epiphyte_methods::framework::settings::Settings;
/// let json = r#"{ "rank": 4, "target_modules": "all-linear" }"#;
/// let example: Example = serde_json::from_str(json)?;
/// assert_eq!((example.r, Example::FLAGS[0].help), (4, "Rank of the update"));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// A setting is `name: type = default`; its doc comment is the help text, without the last period.
/// What may follow, in this order:
/// - `flag "…"`: the flag, if it is not the name with dashes; `""` for none
/// - `alias "…" | "…"`: former names, which stay accepted
/// - `in …`: the [`Range`](crate::framework::settings::Range) of a number
/// - `as …`: the [`FlagKind`](crate::framework::settings::FlagKind), if the type does not say it
/// - `unset "…"`: what `--help` says of the default, in place of its value
///
/// At the end, `..name: type = default` embeds the settings of another group, as if they stood
/// here.
///
/// The struct has public fields and implements [`Settings`], `Default`, `Serialize` and
/// `Deserialize`: settings that are left out have their defaults, unknown ones are an error.
#[macro_export]
macro_rules! settings {
    (@or [$otherwise:expr]) => { $otherwise };
    (@or [$otherwise:expr] $given:expr) => { $given };
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                $(#[serde($($serde:tt)*)])?
                $field:ident: $type:ty = $default:expr
                $(, flag $flag:literal)?
                $(, alias $($alias:literal)|+)?
                $(, in $range:ident)?
                $(, as $kind:ident)?
                $(, unset $unset:literal)?;
            )*
            $(..$group:ident: $group_type:ty = $group_default:expr;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize)]
        pub struct $name {
            $(
                $(#[doc = $help])+
                $(#[doc = concat!("\n\nDefault: ", $unset, ".")])?
                $(#[serde($($serde)*)])?
                pub $field: $type,
            )*
            $(
                #[doc = concat!("The settings of [`", stringify!($group_type), "`].")]
                #[serde(flatten)]
                pub $group: $group_type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* $($group: $group_default,)* }
            }
        }

        impl $crate::framework::settings::Settings for $name {
            const FLAGS: &'static [$crate::framework::settings::Flag] = {
                use $crate::framework::settings;
                const PARTS: &[&[settings::Flag]] = &[
                    &[$(settings::Flag {
                        flag: $crate::settings!(@or [{
                            const KEY: &str = stringify!($field);
                            const FLAG: [u8; KEY.len()] = settings::dashed(KEY);
                            settings::text(&FLAG)
                        }] $($flag)?),
                        key: stringify!($field),
                        aliases: &[$($($alias),+)?],
                        help: settings::help(concat!($($help),+)),
                        kind: $crate::settings!(
                            @or [<$type as settings::SettingType>::KIND] $(settings::FlagKind::$kind)?
                        ),
                        unset: $crate::settings!(@or [None] $(Some($unset))?),
                    }),*],
                    $(<$group_type as settings::Settings>::FLAGS,)*
                ];
                const ALL: [settings::Flag; settings::count(PARTS)] = settings::join(PARTS);
                &ALL
            };

            fn set(
                &mut self,
                name: &str,
                value: &::serde_json::Value,
            ) -> Result<bool, $crate::framework::settings::SettingError> {
                let (_key, _value) = ($crate::framework::settings::key(Self::FLAGS, name), value);
                $(
                    if _key == stringify!($field) {
                        self.$field = $crate::framework::settings::read(Self::FLAGS, _key, _value)?;
                        return Ok(true);
                    }
                )*
                Ok(false $(|| $crate::framework::settings::Settings::set(&mut self.$group, name, value)?)*)
            }

            fn check(&self) -> Result<(), $crate::framework::settings::SettingError> {
                $($(
                    $crate::framework::settings::Range::$range.check(stringify!($field), &self.$field)?;
                )?)*
                $($crate::framework::settings::Settings::check(&self.$group)?;)*
                Ok(())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let given = ::serde::Deserialize::deserialize(deserializer)?;
                $crate::framework::settings::parse(&given).map_err(::serde::de::Error::custom)
            }
        }
    };
}

// What follows is called by the macro.

/// The key of the setting that is called `name`; `name` itself if there is none.
#[doc(hidden)]
pub fn key<'a>(flags: &[Flag], name: &'a str) -> &'a str {
    let flag = flags.iter().find(|flag| flag.is_called(name));
    flag.map_or(name, |flag| flag.key)
}

/// A value of the setting `key`, whose kind its flag says. One value is a list of one, as in HF
/// PEFT's files.
#[doc(hidden)]
pub fn read<T: DeserializeOwned>(
    flags: &[Flag],
    key: &str,
    value: &Value,
) -> Result<T, SettingError> {
    let kind = flags.iter().find(|flag| flag.key == key);
    let kind = kind.map(|flag| flag.kind);
    let list = match (kind, value) {
        (Some(FlagKind::Integers), Value::Number(_))
        | (Some(FlagKind::Texts), Value::String(_)) => Some(Value::Array(vec![value.clone()])),
        _ => None,
    };
    let value = list.as_ref().unwrap_or(value);
    T::deserialize(value).map_err(|error| SettingError::Type {
        key: key.to_owned(),
        problem: match kind {
            Some(kind) if !kind.fits(value) => format!("{value} is not {}", kind.expected()),
            _ => error.to_string(),
        },
    })
}

/// A doc comment as help text: without spaces at its ends and without the last period, if it is no
/// ellipsis.
#[doc(hidden)]
pub const fn help(doc: &'static str) -> &'static str {
    let text = doc.trim_ascii();
    match text.as_bytes() {
        [.., b'.', b'.'] => text,
        [.., b'.'] => text.split_at(text.len() - 1).0,
        _ => text,
    }
}

/// A key with dashes in place of underscores.
#[doc(hidden)]
pub const fn dashed<const N: usize>(key: &str) -> [u8; N] {
    let mut bytes = [b'-'; N];
    let mut at = 0;
    while at < N {
        if key.as_bytes()[at] != b'_' {
            bytes[at] = key.as_bytes()[at];
        }
        at += 1;
    }
    bytes
}

/// The text of a flag.
#[doc(hidden)]
pub const fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("names of fields are UTF-8"),
    }
}

/// The number of settings that are flags.
#[doc(hidden)]
pub const fn count(parts: &[&[Flag]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        let mut at = 0;
        while at < parts[part].len() {
            if !parts[part][at].flag.is_empty() {
                count += 1;
            }
            at += 1;
        }
        part += 1;
    }
    count
}

/// The settings that are flags, of all groups.
#[doc(hidden)]
pub const fn join<const N: usize>(parts: &[&[Flag]]) -> [Flag; N] {
    const EMPTY: Flag = Flag {
        flag: "",
        key: "",
        aliases: &[],
        help: "",
        kind: FlagKind::Text,
        unset: None,
    };
    let mut flags = [EMPTY; N];
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        let mut at = 0;
        while at < parts[part].len() {
            if !parts[part][at].flag.is_empty() {
                flags[count] = parts[part][at];
                count += 1;
            }
            at += 1;
        }
        part += 1;
    }
    flags
}
