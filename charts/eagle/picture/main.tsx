// Draws the dashboard of the chart with Grafana's components, at the place and size that Grafana gives each panel.

import {
  createTheme,
  EventBusSrv,
  FieldColorModeId,
  getDisplayProcessor,
  rangeUtil,
  ThemeContext,
  type DataFrame,
  type FieldConfig,
  type TimeRange,
} from "@grafana/data";
import { GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries } from "@grafana/ui";
import { createRoot } from "react-dom/client";

import dashboard from "../files/dashboard.json";
import { query, type Source } from "./prometheus";

type Panel = (typeof dashboard.panels)[number];

// Grafana's own: columns of its grid, and height of a row and the space between panels in pixels.
const COLUMNS = 24;
const ROW = 30;
const SPACE = 8;
const HEADER = 56;

const theme = createTheme({ colors: { mode: "dark" } });

/** What a panel of the type `timeseries` has where its JSON says nothing. */
const DEFAULTS: FieldConfig = { color: { mode: FieldColorModeId.PaletteClassic } };
const CUSTOM = {
  drawStyle: "line",
  lineInterpolation: "linear",
  lineWidth: 1,
  fillOpacity: 0,
  gradientMode: "none",
  spanNulls: false,
  showPoints: "auto",
  pointSize: 5,
  axisPlacement: "auto",
  axisColorMode: "text",
  axisBorderShow: false,
  scaleDistribution: { type: "linear" },
  stacking: { mode: "none", group: "A" },
  hideFrom: { tooltip: false, viz: false, legend: false },
};

/** Anything that would be drawn otherwise by Grafana is an error: no picture is better than an untrue one. */
function check(panel: Panel) {
  const unknown = [
    panel.type === "timeseries" ? [] : [panel.type],
    panel.fieldConfig.overrides,
    Object.keys(panel.fieldConfig.defaults).filter((key) => !["unit", "min", "max", "custom"].includes(key)),
    Object.keys(panel.options).filter((key) => key !== "legend"),
  ].flat();
  if (unknown.length > 0) {
    throw new Error(`${panel.title}: cannot be drawn here: ${JSON.stringify(unknown)}`);
  }
}

async function load(panel: Panel, source: Source, range: TimeRange, width: number): Promise<DataFrame[]> {
  check(panel);
  const frames = (await Promise.all(panel.targets.map((target) => query(source, target, range, width)))).flat();
  const { custom, ...defaults }: FieldConfig = panel.fieldConfig.defaults;
  frames.forEach((frame, index) => {
    for (const field of frame.fields) {
      field.config = { ...DEFAULTS, ...defaults, ...field.config, custom: { ...CUSTOM, ...custom } };
      field.state = { seriesIndex: index };
      field.display = getDisplayProcessor({ field, theme });
    }
  });
  return frames;
}

function Drawn({ panel, frames, range, unit }: { panel: Panel; frames: DataFrame[]; range: TimeRange; unit: number }) {
  const { x, y, w, h } = panel.gridPos;
  const width = w * unit - SPACE;
  const height = h * ROW + (h - 1) * SPACE;
  return (
    <div style={{ position: "absolute", left: x * unit, top: HEADER + y * (ROW + SPACE) }}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
        {(innerWidth, innerHeight) =>
          frames.length === 0 ? (
            <p>No data</p>
          ) : (
            <TimeSeries
              frames={frames}
              timeRange={range}
              timeZone="utc"
              width={innerWidth}
              height={innerHeight}
              legend={{ showLegend: true, calcs: [], ...panel.options.legend } as never}
            />
          )
        }
      </PanelChrome>
    </div>
  );
}

async function font(weight: string, name: string) {
  const url = `/public/fonts/inter/Inter-${name}.woff2`;
  document.fonts.add(await new FontFace("Inter", `url(${url})`, { weight }).load());
}

async function draw() {
  const asked = new URLSearchParams(location.search);
  const source = {
    url: asked.get("prometheus") ?? "http://127.0.0.1:9090",
    scrape: Number(asked.get("scrape") ?? 15),
    namespace: asked.get("namespace") ?? ".*",
  };
  const raw = { from: asked.get("from") ?? dashboard.time.from, to: asked.get("to") ?? dashboard.time.to };
  const range = rangeUtil.convertRawToRange(raw, "utc");
  const unit = (window.innerWidth - SPACE) / COLUMNS;
  const panels = await Promise.all(
    dashboard.panels.map(async (panel) => ({
      panel,
      frames: await load(panel, source, range, panel.gridPos.w * unit),
    })),
  );
  // Text on a canvas does not wait for its font.
  await Promise.all(Object.entries({ 400: "Regular", 500: "Medium" }).map(([weight, name]) => font(weight, name)));
  const rows = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const namespace = source.namespace === ".*" ? "All" : source.namespace;
  createRoot(document.getElementById("root")!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={{ eventsScope: "global", eventBus: new EventBusSrv() }}>
        <div style={{ position: "relative", height: HEADER + rows * (ROW + SPACE), margin: `0 ${SPACE}px` }}>
          <div style={{ display: "flex", gap: 24, alignItems: "center", height: HEADER }}>
            <h3 style={{ margin: 0, flexGrow: 1 }}>{dashboard.title}</h3>
            <span>Namespace: {namespace}</span>
            <span>
              {rangeUtil.describeTimeRange(raw)} ({range.to.format("YYYY-MM-DD")}, UTC)
            </span>
          </div>
          {panels.map(({ panel, frames }) => (
            <Drawn key={panel.id} panel={panel} frames={frames} range={range} unit={unit} />
          ))}
        </div>
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
}

draw().catch((error) => {
  document.body.textContent = String(error);
  throw error;
});
