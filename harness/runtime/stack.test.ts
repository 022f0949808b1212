// SPDX-License-Identifier: Apache-2.0

/** A stack by itself: without keeper, gateway or engine. */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readSettings } from "../base/settings.ts";
import { findParts } from "./places.ts";
import { Run } from "./run.ts";
import { type Setup, Stack } from "./stack.ts";

test("a stack that is stopped before it began makes nothing afterwards", async () => {
  const folder = mkdtempSync(join(tmpdir(), "st-"));
  const made = join(folder, "made");
  const { settings } = readSettings([], { ...process.env, OPENSHELL_E2E_RUN_DIR: folder });
  const driver = ["sh", "-c", `touch ${made}`];
  const run = Run.create(settings);
  mkdirSync(run.folder);
  const setup = {
    ...{
      run,
      settings,
      parts: findParts(settings),
      engine: undefined,
      sandboxImage: "",
      supervisorImage: "",
    },
    commands: { gateway: ["false"], driver, checkedDriver: driver },
  } as unknown as Setup;
  const stack = new Stack(1, { order: "driver-only", tap: false }, setup);
  try {
    const failure = stack.start().then(
      () => "it started",
      (error: Error) => error.message,
    );
    await stack.stop();
    expect(await failure).toBe("The stack was stopped while it started");
    expect(stack.driver).toBeUndefined();
    expect(existsSync(made)).toBe(false);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
