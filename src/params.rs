//! Parameters: the exact integer state and its floating-point view.
