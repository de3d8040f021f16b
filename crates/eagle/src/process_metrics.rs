//! Metrics of the process itself, whatever its role.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
    registry::Registry,
};
use tokio::runtime::Handle;

/// Adds the metrics of the process to those of its role. Call it within the runtime whose tasks are to be counted.
pub(crate) fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(ProcessCollector { runtime: Handle::current() }));
}

/// Counts when it is asked.
#[derive(Debug)]
struct ProcessCollector {
    runtime: Handle,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let tasks = self.runtime.metrics().num_alive_tasks();
        let metric = ConstGauge::new(i64::try_from(tasks).unwrap_or(i64::MAX));
        let help = "Asynchronous tasks that have not ended.";
        metric.encode(encoder.encode_descriptor("eagle_process_tasks", help, None, metric.metric_type())?)
    }
}
