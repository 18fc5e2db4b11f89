//! Data sets: parsers, the built-in digits, shards.
