// Draws a dashboard as Grafana does, from window.shown: the dashboard's JSON, and Prometheus's data for the queries of each panel.
import { applyFieldOverrides, createTheme, dateTime, EventBusSrv, FieldType, getDisplayProcessor, ThemeContext, toDataFrame } from '@grafana/data';
import { BigValue, BigValueColorMode, BigValueGraphMode, BigValueJustifyMode, BigValueTextMode, GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

const { dashboard, series, from, to } = window.shown;
const theme = createTheme({ colors: { mode: 'light' } });
const range = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };
const WIDTH = 1400, CELL = 30, GAP = 8;

function fieldConfig(panel) {
  const config = structuredClone(panel.fieldConfig);
  const defaults = { drawStyle: 'line', lineInterpolation: 'linear', showPoints: 'auto', pointSize: 5, axisPlacement: 'auto', barAlignment: 0, scaleDistribution: { type: 'linear' }, hideFrom: { legend: false, tooltip: false, viz: false } };
  config.defaults.custom = { ...defaults, stacking: { mode: 'none', group: 'A' }, thresholdsStyle: { mode: 'off' }, ...config.defaults.custom };
  config.defaults.custom.stacking = { group: 'A', ...config.defaults.custom.stacking };
  config.defaults.color ??= { mode: panel.type === 'stat' ? 'thresholds' : 'palette-classic' };
  config.defaults.thresholds.steps = config.defaults.thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity }));
  return { defaults: config.defaults, overrides: [] };
}

function frames(panel) {
  const data = (series[panel.id] ?? []).map(({ legend, times, values }) => toDataFrame({
    name: legend,
    fields: [
      { name: 'Time', type: FieldType.time, values: times, config: {} },
      { name: legend || panel.title, type: FieldType.number, values, config: { displayName: legend || panel.title }, labels: {} },
    ],
  }));
  const shown = applyFieldOverrides({ data, fieldConfig: fieldConfig(panel), replaceVariables: (text) => text, theme, timeZone: 'utc', fieldConfigRegistry: registry });
  // Grafana's registry would set these panel options.
  const { custom, unit, min, max, thresholds, color } = fieldConfig(panel).defaults;
  shown.forEach((frame, index) => frame.fields.forEach((field) => {
    if (field.type === FieldType.number) {
      field.config = { ...field.config, custom, unit, min, max, thresholds, color };
      field.state = { ...field.state, seriesIndex: index };
    }
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
  }));
  return shown;
}

const registry = undefined;

function Graph({ panel, width, height }) {
  const data = frames(panel);
  if (!data.length) return <div style={{ textAlign: 'center', paddingTop: height / 2 - 10 }}>No data</div>;
  return <TimeSeries frames={data} width={width} height={height} timeRange={range} timeZone="utc" legend={panel.options.legend} options={{}} structureRev={1} />;
}

function Number({ panel, width, height }) {
  const data = frames(panel);
  const each = width / Math.max(1, data.length);
  return <div style={{ display: 'flex' }}>{data.map((frame, index) => {
    const [time, field] = frame.fields;
    const last = field.values[field.values.length - 1];
    return <BigValue key={index} theme={theme} width={each - 4} height={height} colorMode={BigValueColorMode.Value} graphMode={BigValueGraphMode.Area} justifyMode={BigValueJustifyMode.Auto}
      textMode={data.length > 1 ? BigValueTextMode.ValueAndName : BigValueTextMode.Value}
      value={{ ...field.display(last), title: frame.name }} sparkline={{ x: time, y: field }} />;
  })}</div>;
}

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (WIDTH - GAP) / 24;
  const place = { position: 'absolute', left: GAP + x * column, top: GAP + y * (CELL + GAP) };
  const width = w * column - GAP, height = h * (CELL + GAP) - GAP;
  if (panel.type === 'row') return <div style={{ ...place, width, fontSize: 16, fontWeight: 500, paddingTop: 6 }}>{panel.title}</div>;
  const Content = panel.type === 'stat' ? Number : Graph;
  return <div style={{ ...place, width, height }}>
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
      {(innerWidth, innerHeight) => <Content panel={panel} width={innerWidth} height={innerHeight} />}
    </PanelChrome>
  </div>;
}

const context = { eventsScope: 'global', eventBus: new EventBusSrv(), sync: () => 0 };
const rows = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
document.body.style.background = theme.colors.background.canvas;
createRoot(document.getElementById('page')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <PanelContextProvider value={context}>
      <div style={{ position: 'relative', width: WIDTH + GAP, height: rows * (CELL + GAP) + GAP }}>
        {dashboard.panels.map((panel) => <Panel key={panel.id ?? panel.title} panel={panel} />)}
      </div>
    </PanelContextProvider>
  </ThemeContext.Provider>,
);
