//! Objects under keys that no path serves: what API servers keep among themselves.
//!
//! They are in no cache: each read asks the store. Other servers over the same etcd, upstream's too, find them where
//! they expect them.
use async_trait::async_trait;
use serde_json::Value;
use std::sync::Arc;
use store::{Compare, Op, RangeRequest, Txn};

use crate::core::{Core, store_error};
use crate::object;
use crate::storage::Unserved;
use crate::stored::{self, StorageMediaType};
use crate::types::Status;

pub(crate) struct CoreUnserved(pub Arc<Core>);

impl CoreUnserved {
    fn open(&self, kv: &store::KeyValue) -> Result<Value, Status> {
        let plain = self.0.transformer.open(&kv.key, &kv.value).map_err(api::status::internal)?;
        stored::tree(&plain).map_err(api::status::internal)
    }
}

#[async_trait]
impl Unserved for CoreUnserved {
    async fn get(&self, key: &str) -> Result<Option<(Value, u64)>, Status> {
        let found = self.0.store.range(RangeRequest::key(key)).await.map_err(store_error)?;
        found.kvs.first().map(|kv| Ok((self.open(kv)?, kv.mod_revision as u64))).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Value>, Status> {
        let found = self.0.store.range(RangeRequest::prefix(prefix)).await.map_err(store_error)?;
        found.kvs.iter().map(|kv| self.open(kv)).collect()
    }

    async fn put(&self, key: &str, object: &Value, expect: u64, ttl_seconds: Option<u64>) -> Result<bool, Status> {
        let bytes = match self.0.media_type {
            StorageMediaType::Protobuf => api::codec::encode_protobuf(object).map_err(api::status::internal)?,
            StorageMediaType::Json => object::encode_stored(object),
        };
        let value = self.0.transformer.seal(key.as_bytes(), bytes.into()).map_err(api::status::internal)?;
        let put = Op::Put { key: key.into(), value, ttl_seconds };
        let txn = Txn { compare: vec![Compare { key: key.into(), mod_revision: expect as i64 }], then: vec![put] };
        Ok(self.0.store.txn(txn).await.map_err(store_error)?.succeeded)
    }

    async fn delete(&self, key: &str) -> Result<(), Status> {
        self.0.store.txn(Txn::delete(key)).await.map_err(store_error).map(drop)
    }
}
