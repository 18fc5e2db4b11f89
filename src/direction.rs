//! Directions: Rademacher vectors regenerated from shared seeds.
