//! LB8, the one-byte code of a projected gradient.
