//! The proxy of Eagle: the registry mirror that container runtimes pull through.
#![warn(missing_docs)]
