// SPDX-License-Identifier: Apache-2.0

/** Drivers that are wrong about what there is. */

import { mutant, refusal } from "../../../harness/conformance/mutant.ts";
import type { DriverSandbox__Output as Sandbox } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import { has, failing, made } from "./broken.ts";

mutant(
  "GetSandbox answers INTERNAL for an unknown id",
  ["DC-20", "DC-31", "DC-34", "DC-45", "DC-48", "DC-72", "DC-78", "DC-141", "DC-162"],
  {
    GetSandbox: (_, pass) => pass().catch(failing("NOT_FOUND", "INTERNAL")),
  },
);

mutant(
  "GetSandbox answers with the sandbox that was made last",
  ["DC-31", "DC-46", "DC-48", "DC-80", "DC-141"],
  () => {
    let last = "";
    return {
      async CreateSandbox(request, pass) {
        const response = await pass();
        last = request.sandbox?.id ?? "";
        return response;
      },
      GetSandbox: (request, pass) => pass({ ...request, sandbox_id: last || request.sandbox_id }),
    };
  },
);

mutant("GetSandbox answers NOT_FOUND to a request without an id", ["DC-47"], {
  GetSandbox: (_, pass) => pass().catch(failing("INVALID_ARGUMENT", "NOT_FOUND")),
});

mutant("GetSandbox looks for the name when it does not know the id", ["DC-31", "DC-48", "DC-141"], () => {
  const ids = new Map<string, string>();
  return {
    CreateSandbox({ sandbox }, pass) {
      if (sandbox) ids.set(sandbox.name, sandbox.id);
      return pass();
    },
    GetSandbox: (request, pass) =>
      pass().catch((error: unknown) => {
        const sandbox_id = ids.get(request.sandbox_name);
        if (!sandbox_id || !has(error, "NOT_FOUND")) throw error;
        return pass({ ...request, sandbox_id });
      }),
  };
});

mutant("ListSandboxes hides what does not run", ["DC-49", "DC-60", "DC-61"], {
  async ListSandboxes(_, pass) {
    const exited = ({ status }: Sandbox) =>
      status?.conditions.some(({ reason }) => reason === "ContainerExited");
    return { sandboxes: (await pass()).sandboxes.filter((sandbox) => !exited(sandbox)) };
  },
});

mutant(
  "ListSandboxes takes every sandbox for failed",
  ["DC-50", "DC-61", "DC-92", "DC-97", "DC-109", "DC-176"],
  {
    async ListSandboxes(_, pass) {
      const conditions = [{ type: "Ready", status: "False", reason: "Failed" }];
      const { sandboxes } = await pass();
      return {
        sandboxes: sandboxes.map((sandbox) => ({ ...sandbox, status: { ...sandbox.status, conditions } })),
      };
    },
  },
);

mutant("ListSandboxes answers NOT_FOUND when there are none", ["DC-51", "DC-52", "DC-174"], {
  async ListSandboxes(_, pass) {
    const response = await pass();
    if (response.sandboxes.length === 0) throw refusal("NOT_FOUND");
    return response;
  },
});

mutant("ListSandboxes has the sandboxes of all drivers on the machine", ["DC-52"], {
  async CreateSandbox({ sandbox }, pass) {
    const response = await pass();
    if (sandbox) made.set(sandbox.id, sandbox);
    return response;
  },
  async DeleteSandbox({ sandbox_id }, pass) {
    const response = await pass();
    // Only now: a create that was under way has ended by then.
    made.delete(sandbox_id);
    return response;
  },
  async ListSandboxes(_, pass) {
    const { sandboxes } = await pass();
    const others = [...made.values()].filter(({ id }) => sandboxes.every((own) => own.id !== id));
    return { sandboxes: [...sandboxes, ...others] };
  },
});

mutant("ListSandboxes has another order each time", ["DC-53"], () => {
  let calls = 0;
  return {
    async ListSandboxes(_, pass) {
      const { sandboxes } = await pass();
      return { sandboxes: calls++ % 2 ? sandboxes.toReversed() : sandboxes };
    },
  };
});
