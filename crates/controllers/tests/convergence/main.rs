//! Every controller comes to the same end, however the API server treats it: each scenario is played
//! once in peace, then with requests that are refused, conflict, are done without an answer, and with
//! watches that break or expire.

mod claims;
mod cluster;
mod ends;
mod faults;
mod kubelet;
mod limits;
mod network;
mod objects;
mod ownership;
mod scheduled;
mod storage;
mod workloads;
mod world;
