import { cpSync } from "node:fs";

import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

/** Puts what Grafana's components fetch where they look for it: icons, and the font of all text. */
function assets(): Plugin {
  let directory: string;
  return {
    name: "grafana-assets",
    configResolved: (config) => {
      directory = `${config.build.outDir}/public`;
    },
    closeBundle: () => {
      cpSync("node_modules/@grafana/ui/dist/public/img", `${directory}/build/img`, { recursive: true });
      for (const [weight, name] of Object.entries({ 400: "Regular", 500: "Medium" })) {
        const file = `node_modules/@fontsource/inter/files/inter-latin-${weight}-normal.woff2`;
        cpSync(file, `${directory}/fonts/inter/Inter-${name}.woff2`);
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), assets()],
  // The page is opened from this machine, and once.
  build: { minify: false, chunkSizeWarningLimit: 100_000 },
});
