// SPDX-License-Identifier: Apache-2.0

/** A test file that holds a Ready sandbox until somebody kills something: `bun test ./harness/runtime/hold.fixture.ts`. */
import { scenario } from "../scenario.ts";

scenario("HO-01 a sandbox is held", async ({ gateway, stack }) => {
  const sandbox = await gateway.readySandbox();
  console.log(`HOLDING ${JSON.stringify({ ...stack.info, sandboxId: sandbox.id })}`);
  await new Promise(() => {});
});
