//! What other rooms count, shown as it stands: read when somebody looks, instead of being added up
//! a second time.

use super::Metrics;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::HashMap;

/// Whether a number only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does; its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number that somebody else keeps.
struct Shown<R> {
    desc: Desc,
    kind: Kind,
    read: R,
}

impl<R: Fn() -> u64 + Send + Sync> Collector for Shown<R> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let label = |(name, value): (&'static str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.into());
            pair.set_value(value);
            pair
        };
        let labels =
            self.desc.const_label_pairs.iter().map(|pair| (LABEL, pair.value().to_owned()));
        let mut metric = Metric::from_label(labels.map(label).collect());
        let (value, mut family) = ((self.read)() as f64, MetricFamily::default());
        match self.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
                family.set_field_type(MetricType::COUNTER);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
                family.set_field_type(MetricType::GAUGE);
            }
        }
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_metric(vec![metric]);
        vec![family]
    }
}

/// The one label that such numbers have.
const LABEL: &str = "lane";

impl Metrics {
    /// Shows a number that somebody else keeps, under a name of its own.
    ///
    /// # Panics
    /// If the name is taken: names are constants, and a test shows them all.
    pub fn show(
        &self,
        kind: Kind,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.show_labelled(kind, name, help, None, read);
    }

    /// The same for one lane between nodes.
    pub fn show_of_lane(
        &self,
        lane: &str,
        kind: Kind,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.show_labelled(kind, name, help, Some(lane), read);
    }

    fn show_labelled(
        &self,
        kind: Kind,
        name: &str,
        help: &str,
        lane: Option<&str>,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let labels: HashMap<_, _> =
            lane.map(|lane| (LABEL.to_owned(), lane.to_owned())).into_iter().collect();
        let desc = Desc::new(name.into(), help.into(), Vec::new(), labels)
            .expect("names and labels are constants");
        self.registry
            .register(Box::new(Shown { desc, kind, read }))
            .expect("each name is shown once");
    }
}
