// SPDX-License-Identifier: Apache-2.0

/** Whether this test process has what ends a run: bun reads our bunfig.toml, which names it, in its own folder alone. */
import { ROOT } from "./base/root.ts";
import { join } from "node:path";
import { shellQuoted } from "./base/text.ts";

let isPreloaded = false;

/** Called by preload.ts. */
export const notePreload = (): void => void (isPreloaded = true);

/** Why no scenario can run in this process; undefined when one can. */
export function withoutPreload(): string | undefined {
  if (isPreloaded) return undefined;
  const root = ROOT;
  return (
    "bun test was started in another folder, where it does not load what ends a run, explains its failures and looks " +
    `for leftovers. Start it in ${shellQuoted(root)}, or with --preload ${shellQuoted(join(ROOT, "scenarios", "preload.ts"))}`
  );
}
