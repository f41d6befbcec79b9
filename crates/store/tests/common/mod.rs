//! What the tests of the store share.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod etcd;
pub mod history;
