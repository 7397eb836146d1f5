//! The YAML configuration of virtfold: schema, defaults, validation.
