//! Services to rule set (pure) to one nf_tables transaction.
#![forbid(unsafe_code)]
