//! This node in its cluster.

mod own;
