// SPDX-License-Identifier: Apache-2.0

/**
 * For memory.test.ts, which preloads it into every Bun process of a run (BUN_OPTIONS): the one that RUNAWAY names runs
 * away, as grpc-js's endless retries did, in microtasks that leave no time for anything else. Bounds are lowered, since
 * a test need not fill a machine.
 */
import { BOUNDS, PATIENCE, watchMemory } from "./memory.ts";

const { RUNAWAY } = process.env;
const isTest = process.argv[1]?.endsWith("harness.ts") === false;
const who = process.argv.includes("keep") ? "keeper" : isTest ? "test" : "command";

Object.assign(BOUNDS, { keeper: 400, "test process": 400, command: 400 });
// What a fake gateway exceeds when it starts.
if (RUNAWAY === "fake") BOUNDS.fake = 40;
PATIENCE.ms = 3_000;
// The preload of bunfig.toml comes before this one, and watches by the bounds of every day.
if (isTest) watchMemory({ as: "test process" });

/** Should nobody end the runaway, the machine is to survive the test, in bytes. */
const ENOUGH = 2 ** 30;

if (RUNAWAY === "stuck" && who === "keeper")
  setTimeout(() => {
    for (;;);
  }, 700);
if (RUNAWAY === who)
  setTimeout(async () => {
    const kept: unknown[] = [];
    let isEnough = false;
    for (let i = 0; ; i++) {
      await Promise.resolve();
      if (i % 1_000 === 0) isEnough ||= process.memoryUsage.rss() > ENOUGH;
      if (!isEnough) kept.push(Array.from({ length: 100 }, () => i));
    }
  }, 700);
