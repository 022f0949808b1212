// SPDX-License-Identifier: Apache-2.0

import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readSettings } from "../base/settings.ts";
import { startKeeper } from "./connection.ts";
import { Run } from "./run.ts";

setDefaultTimeout(60_000);

const folder = mkdtempSync(join(tmpdir(), "cl-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("a run that ends while stacks are being stopped waits for them, and leaves nothing", async () => {
  const { settings } = readSettings([], {
    ...process.env,
    OPENSHELL_E2E_RUN_DIR: join(folder, "runs"),
    OPENSHELL_E2E_REPORTS: join(folder, "reports"),
    OPENSHELL_E2E_FAKE: "gateway,driver,engine,supervisor",
  });
  const keeper = await startKeeper(Run.create(settings), settings);
  const stacks = await Promise.all([1, 2, 3, 4].map(() => keeper.call("startStack", {})));
  const stopping = stacks.map(({ id }) => keeper.call("stopStack", id));
  expect(await keeper.call("close")).toEqual([]);
  expect((await Promise.all(stopping)).flat()).toEqual([]);
  keeper.close();
});
