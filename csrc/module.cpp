// The Python module recgrela._C. Importing it registers the operators; its attributes describe the build.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"
#include "recgrela_build.h"  // written by setup.py

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of recgrela, and information about how they were built.";
  m.attr("version") = RECGRELA_VERSION;
  m.attr("torch_version") = RECGRELA_TORCH_VERSION;  // the version whose headers were used
  m.attr("compiler") = __VERSION__;
#ifdef RECGRELA_CUDA_VERSION
  m.attr("cuda_version") = RECGRELA_CUDA_VERSION;
  m.attr("cuda_architectures") = RECGRELA_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_version") = pybind11::none();
  m.attr("cuda_architectures") = pybind11::none();
#endif
  m.def("cpu_isa", &recgrela::cpu::isa_name,
        "Returns the instruction set of the CPU kernels in use: avx512, avx2 or baseline.");
  m.def("set_cpu_isa", &recgrela::cpu::set_isa, pybind11::arg("name"),
        "Switches to the CPU kernels of another instruction set, for tests. Returns False if the processor does not "
        "support it.");
}
