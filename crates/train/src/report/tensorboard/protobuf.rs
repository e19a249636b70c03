//! The wire format of protocol buffers (protobuf.dev/programming-guides/encoding), writing only.

/// A protocol buffer message under construction: fields in the order in which they are added.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    const VARINT: u32 = 0;
    const FIXED_64: u32 = 1;
    const LENGTH_DELIMITED: u32 = 2;
    const FIXED_32: u32 = 5;

    /// The message so far, encoded.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A non-negative integer or an enum value; 0 is the default, which proto3 leaves out.
    pub(super) fn integer(self, field: u32, value: u64) -> Self {
        if value == 0 {
            self
        } else {
            self.key(field, Self::VARINT).varint(value)
        }
    }

    pub(super) fn double(self, field: u32, value: f64) -> Self {
        self.key(field, Self::FIXED_64).bytes(&value.to_le_bytes())
    }

    pub(super) fn float(self, field: u32, value: f32) -> Self {
        self.key(field, Self::FIXED_32).bytes(&value.to_le_bytes())
    }

    pub(super) fn string(self, field: u32, text: &str) -> Self {
        self.delimited(field, text.as_bytes())
    }

    pub(super) fn message(self, field: u32, message: &Message) -> Self {
        self.delimited(field, &message.0)
    }

    /// The fields of `other`, added to this message.
    pub(super) fn append(self, other: &Message) -> Self {
        self.bytes(&other.0)
    }

    fn delimited(self, field: u32, bytes: &[u8]) -> Self {
        self.key(field, Self::LENGTH_DELIMITED)
            .varint(bytes.len() as u64)
            .bytes(bytes)
    }

    fn key(self, field: u32, wire_type: u32) -> Self {
        self.varint(u64::from(field << 3 | wire_type))
    }

    /// Seven bits a byte, lowest first; the high bit says that more follow.
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    /// Bytes that are encoded already.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}
