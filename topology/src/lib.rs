//! Communication graphs: files, families, spectrum and gossip rates.
