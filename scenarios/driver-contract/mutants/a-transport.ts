// SPDX-License-Identifier: Apache-2.0

/** Drivers that break their transport or their start-up. */
import { mutant, refusal } from "../../../harness/conformance/mutant.ts";

mutant("Refuses callers that name another :authority than a gateway does", ["DC-1"], {
  GetCapabilities: async (_, pass, { authority }) => {
    if (authority !== "[::]:50051") throw refusal("UNIMPLEMENTED");
    return pass();
  },
});

mutant("Fails GetCapabilities", ["DC-1", "DC-2", "DC-10", "DC-12", "DC-13", "DC-157"], {
  GetCapabilities: async () => {
    throw refusal("INTERNAL");
  },
});

mutant("Serves no more than 16 calls at a time", ["DC-10"], () => {
  let underWay = 0;
  return {
    StopSandbox: async (_, pass) => {
      if (underWay >= 16) throw refusal("RESOURCE_EXHAUSTED");
      underWay++;
      return pass().finally(() => underWay--);
    },
  };
});

mutant("Answers nothing else while somebody watches", ["DC-10"], () => {
  let watched = false;
  return {
    WatchSandboxes: (watch) => {
      watched = true;
      return watch.send;
    },
    GetCapabilities: (_, pass) => (watched ? new Promise(() => {}) : pass()),
  };
});

mutant("Refuses metadata that it does not know", ["DC-11"], {
  ValidateSandboxCreate: async (_, pass, { metadata }) => {
    const known = /^(traceparent|user-agent|content-type|te|grpc-.*|:.*)$/;
    if (Object.keys(metadata.getMap()).some((key) => !known.test(key))) throw refusal("INVALID_ARGUMENT");
    return pass();
  },
});

mutant("Refuses fields that it does not know", ["DC-11"], {
  ListSandboxes: async (_, pass, { request }) => {
    if (request.length > 0) throw refusal("INVALID_ARGUMENT");
    return pass();
  },
});
