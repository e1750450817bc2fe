//! A database cluster with one writer and many readers, made by one command.
//!
//! A [`Cluster`] is a [topology] of nodes on a [runtime] (where a node runs) under an
//! [engine] (what runs on it). What both have to do is a [plan] of [steps](step), each of which looks
//! whether it is done before it acts: whatever interrupted it, the same command run again goes on from there.
//!
//! Nothing is touched that does not carry the cluster's own mark, and nothing is deleted that it did not make.

pub mod cluster;
pub mod config;
pub mod disk;
pub mod doctor;
pub mod engine;
pub mod plan;
pub mod runtime;
pub mod state;
pub mod step;
pub mod topology;
pub mod up;

pub use cluster::{Cluster, Connection};
