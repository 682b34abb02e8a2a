// Runs a compiled network without Python: the library, its constants, one raw input of integers in, raw integers out.
//
//     intq compile resnet50-int8 -o resnet50 --constants
//     run resnet50/cpu-*.so resnet50/constants.params 1x224x224x3:uint8 <pixels >scores [cpu|cuda]
//
// A network with several inputs (recordings and their lengths) takes them one after another from standard input. The
// README in this folder says how to build it. On a GPU the library calls CUDA through TVM's runtime for it, which is
// loaded here; nothing else is different.
#include <dlfcn.h>
#ifdef __x86_64__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

constexpr int POOLED = 2;  // TVM's allocator that keeps freed memory for the next run
constexpr DLDevice CPU = {kDLCPU, 0}, CUDA = {kDLCUDA, 0};

ffi::Function global(const char* name) { return ffi::Function::GetGlobalRequired(name); }

ffi::Tensor allocated(const std::vector<int64_t>& shape, DLDataType dtype, DLDevice device) {
  static auto allocate = global("runtime.TVMTensorAllocWithScope");
  return allocate(ffi::Shape(shape), dtype, device, nullptr).cast<ffi::Tensor>();
}

size_t bytes(const ffi::Tensor& tensor) {
  size_t count = 1;
  for (int64_t size : tensor.shape()) count *= size;
  return count * tensor.dtype().bits / 8;
}

// "1x224x224x3:uint8"
ffi::Tensor read(const std::string& what, DLDevice device) {
  size_t colon = what.find(':');
  if (colon == std::string::npos) throw std::runtime_error("an input is SHAPE:DTYPE, such as 1x28x28x1:uint8");
  std::vector<int64_t> shape;
  for (size_t at = 0; at < colon; at = what.find('x', at) == std::string::npos ? colon : what.find('x', at) + 1)
    shape.push_back(std::stoll(what.substr(at)));
  ffi::Tensor tensor = allocated(shape, ffi::StringToDLDataType(what.substr(colon + 1)), device);
  std::vector<char> data(bytes(tensor));
  if (std::fread(data.data(), 1, data.size(), stdin) != data.size())
    throw std::runtime_error("standard input is shorter than " + what);
  global("runtime.TVMTensorCopyFromBytes")(tensor, static_cast<void*>(data.data()), data.size());
  return tensor;
}

void write(const ffi::Tensor& tensor) {
  std::vector<char> data(bytes(tensor));
  global("runtime.TVMTensorCopyToBytes")(tensor, static_cast<void*>(data.data()), data.size());
  std::fwrite(data.data(), 1, data.size(), stdout);
}

// Constants in the order in which `main` takes them, where the kernels read them.
ffi::Array<ffi::Any> constants(const std::string& path, DLDevice device) {
  auto saved = global("runtime.LoadParamsFromFile")(path).cast<ffi::Map<ffi::String, ffi::Tensor>>();
  ffi::Array<ffi::Any> ordered;
  for (size_t i = 0; i < saved.size(); ++i) {
    ffi::Tensor host = saved.at(std::to_string(i));
    ffi::Tensor tensor = allocated({host.shape().begin(), host.shape().end()}, host.dtype(), device);
    global("runtime.TVMTensorCopyFromTo")(host, tensor);
    ordered.push_back(tensor);
  }
  return ordered;
}

// Linux lends AMX's registers to a process that asks; a library for other instruction sets does not need them.
void ask_for_amx() {
#ifdef __x86_64__
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#endif
}

int run(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: run LIBRARY CONSTANTS SHAPE:DTYPE... [cpu|cuda] <input >output\n";
    return 2;
  }
  std::vector<std::string> inputs(arguments + 3, arguments + count);
  DLDevice device = CPU;
  if (inputs.back() == "cpu" || inputs.back() == "cuda") {
    if (inputs.back() == "cuda") {
      device = CUDA;
      if (!dlopen("libtvm_runtime_cuda.so", RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
    }
    inputs.pop_back();
  }
  ask_for_amx();
  ffi::Module machine = ffi::Module::LoadFromFile(arguments[1])->GetFunction("vm_load_executable").value()()
                            .cast<ffi::Module>();
  auto initialize = machine->GetFunction("vm_initialization").value();
  if (device.device_type == kDLCPU)
    initialize(int(CPU.device_type), 0, POOLED);
  else  // what computes sizes runs on the processor
    initialize(int(CUDA.device_type), 0, POOLED, int(CPU.device_type), 0, POOLED);

  std::vector<ffi::Any> given;
  for (const std::string& input : inputs) given.push_back(read(input, device));
  given.push_back(constants(arguments[2], device));
  std::vector<ffi::AnyView> views(given.begin(), given.end());
  ffi::Any answer;
  machine->GetFunction("main").value().CallPacked(views.data(), int(views.size()), &answer);
  for (const ffi::Tensor& output : answer.cast<ffi::Array<ffi::Tensor>>()) write(output);
  return 0;
}

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << "run: " << error.what() << "\n";
    return 1;
  }
}
