// SPDX-License-Identifier: Apache-2.0

/**
 * The scenarios of the suites whose folders OPENSHELL_E2E_SUITES names, or of all, as one test file: bun runs files one after the
 * other, and the machine is idle while the last scenarios of a file wait for something.
 */
import { Glob } from "bun";
import { asOneFile } from "../harness/scenario.ts";

const folders = (process.env.OPENSHELL_E2E_SUITES || "**").split(",");
const files = folders.flatMap((folder) => [
  ...new Glob(`${folder}/*.test.ts`).scanSync({ cwd: import.meta.dir, absolute: true }),
]);
await asOneFile(files.toSorted());
