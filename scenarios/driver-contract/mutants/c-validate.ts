// SPDX-License-Identifier: Apache-2.0

/** Drivers that validate wrongly. */
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";
import type { DriverSandbox__Output as Sandbox } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxTemplate__Output as Template } from "../../../proto/v0.0/types/openshell/compute/v1/DriverSandboxTemplate.ts";
import { failing } from "./broken.ts";

const withFields = (sandbox: Sandbox | null, fields: Partial<Template>): Sandbox | null => {
  const { spec = null } = sandbox ?? {};
  const template = spec?.template && { ...spec.template, ...fields };
  return sandbox && { ...sandbox, spec: spec && { ...spec, template: template ?? null } };
};

mutant(
  "Does not implement ValidateSandboxCreate",
  [
    "DC-11",
    "DC-19",
    "DC-20",
    "DC-21",
    "DC-22",
    "DC-23",
    "DC-24",
    "DC-25",
    "DC-145",
    "DC-134",
    "DC-135",
    "DC-136",
    "DC-137",
  ],
  {
    async ValidateSandboxCreate() {
      throw refusal("UNIMPLEMENTED");
    },
  },
);

mutant("ValidateSandboxCreate makes a sandbox", ["DC-20"], () => {
  const made = new Map<string, Sandbox>();
  return {
    ValidateSandboxCreate({ sandbox }, pass) {
      if (sandbox) made.set(sandbox.id, sandbox);
      return pass();
    },
    GetSandbox: ({ sandbox_id }, pass) =>
      pass().catch((error: unknown) => {
        const sandbox = made.get(sandbox_id);
        if (!sandbox) throw error;
        return { sandbox };
      }),
  };
});

mutant("ValidateSandboxCreate wants a token", ["DC-11", "DC-20", "DC-21"], {
  async ValidateSandboxCreate({ sandbox }, pass) {
    await pass();
    if (!sandbox?.spec?.sandbox_token) throw refusal("FAILED_PRECONDITION");
    return {};
  },
});

mutant("ValidateSandboxCreate accepts a request without a sandbox", ["DC-22"], {
  ValidateSandboxCreate: async ({ sandbox }, pass) => (sandbox ? pass() : {}),
});

mutant("ValidateSandboxCreate does not read driver_config", ["DC-23"], {
  ValidateSandboxCreate: ({ sandbox }, pass) =>
    pass({ sandbox: withFields(sandbox, { driver_config: null }) }),
});

mutant("CreateSandbox does not read driver_config", ["DC-25"], {
  CreateSandbox: ({ sandbox }, pass) => pass({ sandbox: withFields(sandbox, { driver_config: null }) }),
});

mutant(
  "ValidateSandboxCreate takes what is missing here for the user's mistake",
  ["DC-24", "DC-25", "DC-145"],
  {
    ValidateSandboxCreate: (_, pass) => pass().catch(failing("FAILED_PRECONDITION", "INVALID_ARGUMENT")),
  },
);

mutant("Makes nothing of an agent socket that is asked for", ["DC-145"], {
  ValidateSandboxCreate: ({ sandbox }, pass) =>
    pass({ sandbox: withFields(sandbox, { agent_socket_path: "" }) }),
  CreateSandbox: ({ sandbox }, pass) => pass({ sandbox: withFields(sandbox, { agent_socket_path: "" }) }),
});

mutant("Reads no message of more than 512 KiB", ["DC-134"], {
  async ValidateSandboxCreate(_, pass, { request }) {
    if (request.length > 512 * 1024) throw refusal("RESOURCE_EXHAUSTED");
    return pass();
  },
});

mutant("ValidateSandboxCreate fails over a sandbox without a spec", ["DC-137"], {
  async ValidateSandboxCreate({ sandbox }, pass) {
    if (sandbox && !sandbox.spec) throw refusal("INTERNAL");
    return pass();
  },
});
