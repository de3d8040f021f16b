// From the queries of a panel to Grafana's data frames, as its Prometheus data source makes them.

import { FieldType, rangeUtil, type DataFrame, type TimeRange } from "@grafana/data";

export interface Target {
  refId: string;
  expr: string;
  legendFormat: string;
}

interface Series {
  metric: Record<string, string>;
  values: [number, string][];
}

/** Where Prometheus is, and what the dashboard's variables stand for. */
export interface Source {
  url: string;
  /** `scrape_interval` of Prometheus, in seconds; Grafana is told it in the settings of its data source. */
  scrape: number;
  /** A value of the variable `namespace`, as a regular expression. */
  namespace: string;
}

/** Points at most: as many as the panel is wide. */
export async function query(source: Source, target: Target, range: TimeRange, width: number): Promise<DataFrame[]> {
  const step = rangeUtil.calculateInterval(range, width, `${source.scrape}s`).intervalMs / 1000;
  const rateInterval = Math.max(step + source.scrape, 4 * source.scrape);
  const expr = target.expr
    .replaceAll("$namespace", source.namespace)
    .replaceAll("$__rate_interval", `${rateInterval}s`);
  if (expr.includes("$")) {
    throw new Error(`${expr}: a variable has no value`);
  }
  // On multiples of the step, so that the same points are asked for again and again.
  const align = (time: number) => String(Math.floor(time / 1000 / step) * step);
  const parameters = {
    query: expr,
    start: align(range.from.valueOf()),
    end: align(range.to.valueOf()),
    step: String(step),
  };
  const response = await fetch(`${source.url}/api/v1/query_range?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== "success") {
    throw new Error(`${expr}: ${answer.error}`);
  }
  return answer.data.result.map((series: Series) => frame(series, target, step));
}

function frame({ metric, values }: Series, { refId, legendFormat }: Target, step: number): DataFrame {
  const displayNameFromDS = legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? "");
  return {
    refId,
    length: values.length,
    fields: [
      // The interval is what tells a gap from two points of a line.
      {
        name: "Time",
        type: FieldType.time,
        config: { interval: step * 1000 },
        values: values.map(([time]) => time * 1000),
      },
      {
        name: "Value",
        type: FieldType.number,
        labels: metric,
        config: { displayNameFromDS },
        values: values.map(([, value]) => number(value)),
      },
    ],
  };
}

/** NaN and the infinities are gaps in a line, as in Grafana's panel. */
function number(value: string): number | null {
  const parsed = Number(value);
  return Number.isFinite(parsed) ? parsed : null;
}
