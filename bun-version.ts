// SPDX-License-Identifier: Apache-2.0

/**
 * Refuses a Bun that is older than package.json asks for, which would fail later with a stack trace. Imported before
 * everything else, so it imports nothing that such a Bun, or a checkout without packages, does not have.
 */
import { devDependencies, engines } from "./package.json";

if (!Bun.semver.satisfies(Bun.version, engines.bun)) {
  console.error(
    `openshell-e2e: Bun ${engines.bun} is needed, and ${process.execPath} is ${Bun.version}. ` +
      `Run \`bun upgrade\`, or write \`npx --yes bun@${devDependencies["bun-types"]}\` in place of \`bun\``,
  );
  process.exit(2);
}
