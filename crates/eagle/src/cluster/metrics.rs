//! Which cluster keys are in use, among the metrics: an exchange is over when all nodes show the same one.

use eagle_cluster::Membership;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

/// Reads the keys of the moment at each scrape. A key is named by its id, which says nothing about it.
#[derive(Debug)]
pub(super) struct KeyCollector(pub(super) Membership);

impl Collector for KeyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(keys) = self.0.keys() else { return Ok(()) };
        let one = ConstGauge::new(1_i64);
        let help = "Cluster keys that are accepted, and which of them is used for connections that are begun here.";
        let mut family = encoder.encode_descriptor("cluster_key_info", help, None, one.metric_type())?;
        for (place, key) in keys.accepted().iter().enumerate() {
            let purpose = if place == 0 { "own" } else { "accepted" };
            one.encode(family.encode_family(&[("id", key.id().as_str()), ("use", purpose)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use eagle_cluster::{ClusterKey, ClusterKeys};
    use prometheus_client::{encoding::text::encode, registry::Registry};
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn keys_are_named_and_not_shown() {
        let (own, other) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
        let keys: ClusterKeys = format!("{}\n{}", *own.expose(), *other.expose()).parse().unwrap();
        let (_sender, receiver) = watch::channel(keys);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(KeyCollector(Membership::Keyed(receiver))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains(&format!("cluster_key_info{{id=\"{}\",use=\"own\"}} 1\n", own.id())), "{text}");
        assert!(text.contains(&format!("cluster_key_info{{id=\"{}\",use=\"accepted\"}} 1\n", other.id())), "{text}");
        assert!(!text.contains(&*own.expose()), "{text}");
    }
}
