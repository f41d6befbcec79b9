//! The small single-threaded process, one a pod, that holds its containers. No tokio.
