//! The `api` types that the framework traits mention, under one roof.
pub use api::field::FieldError;
pub use api::resources::Resource;
pub use api::status::Status;
