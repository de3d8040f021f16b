//! Which trace a request belongs to, so that the spans of proxy, seeder and registry are found as one: `traceparent` (W3C Trace
//! Context, level 1).
//!
//! Where the program sends traces nowhere, nothing is read from requests, nothing is put on them, and no span is made.

use std::sync::Arc;

use http::HeaderMap;
use opentelemetry::{
    Context, global,
    trace::{SpanContext, TraceContextExt as _, TraceState},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Target of spans that are made for traces: logs leave them out, and traces leave out all others.
pub const TARGET: &str = "eagle_trace";

/// A place in a trace: its name, and the span that what is done next belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext(Arc<SpanContext>);

impl TraceContext {
    /// Where a request comes from, as its headers say; `None` without a valid `traceparent`. What systems on the way have put into
    /// `tracestate` is theirs, and is not kept.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let extractor = HeaderExtractor(headers);
        let context =
            global::get_text_map_propagator(|format| format.extract_with_context(&Context::new(), &extractor));
        Self::of_context(&context)
    }

    /// Within a span; `None` for one that is no part of a trace.
    pub fn of_span(span: &Span) -> Option<Self> {
        Self::of_context(&span.context())
    }

    fn of_context(context: &Context) -> Option<Self> {
        let span = context.span();
        let known = span.span_context();
        let stripped = || {
            let (trace, span, flags) = (known.trace_id(), known.span_id(), known.trace_flags());
            Arc::new(SpanContext::new(trace, span, flags, true, TraceState::default()))
        };
        known.is_valid().then(stripped).map(Self)
    }

    /// Puts it on a request, in the place of what was there.
    pub fn put(&self, headers: &mut HeaderMap) {
        let context = self.context();
        global::get_text_map_propagator(|format| format.inject_context(&context, &mut HeaderInjector(headers)));
    }

    /// The span of what is done for this, which `make` makes.
    pub fn begin(&self, make: impl FnOnce() -> Span) -> Span {
        let span = make();
        // Fails where the program sends traces nowhere, and then there is nothing to be put together.
        let _ = span.set_parent(self.context());
        span
    }

    fn context(&self) -> Context {
        Context::new().with_remote_span_context((*self.0).clone())
    }
}

/// The span of a request that came in, which `make` makes: part of the trace that the headers name, or the first of a new one. From
/// here on the headers name the span itself.
pub fn serve(headers: &mut HeaderMap, make: impl FnOnce() -> Span) -> Span {
    let span = match TraceContext::of(headers) {
        Some(from) => from.begin(make),
        None => make(),
    };
    if let Some(within) = TraceContext::of_span(&span) {
        within.put(headers);
    }
    span
}

/// A number as OpenTelemetry has them, which are never unsigned.
pub fn number(number: impl Into<u64>) -> i64 {
    i64::try_from(number.into()).unwrap_or(i64::MAX)
}

/// The span of what is done for somebody who belongs to a trace, which `make` makes; no span for who does not.
pub fn child(of: Option<&TraceContext>, make: impl FnOnce() -> Span) -> Span {
    of.map_or_else(Span::none, |of| of.begin(make))
}
