// SPDX-License-Identifier: Apache-2.0

import { join } from "node:path";

/** The folder of this checkout. */
export const ROOT = join(import.meta.dir, "..", "..");
