# Generated code of proto/: C messages from derived copies of the protos, and
# the public protos as one embedded FileDescriptorSet for server reflection.
#   #include "godwit/v1/generation.pb-c.h"
# works in every target that links proto.
find_program(PROTOC protoc REQUIRED)
find_program(PROTOC_C protoc-c REQUIRED)
find_program(GRPC_PYTHON_PLUGIN grpc_python_plugin)
set(PYTHON3 /usr/bin/python3) # the interpreter that sees Debian's packages

set(PROTO_DIR ${CMAKE_CURRENT_LIST_DIR})
set(PROTO_C_DIR ${CMAKE_BINARY_DIR}/proto-c)
set(PROTO_API
  godwit/v1/common.proto godwit/v1/generation.proto godwit/v1/session.proto
  godwit/v1/admin.proto)
set(PROTO_GOOGLE
  google/longrunning/operations.proto google/rpc/error_details.proto
  google/rpc/status.proto)
set(PROTO_WELL_KNOWN
  google/protobuf/any.proto google/protobuf/duration.proto
  google/protobuf/empty.proto google/protobuf/field_mask.proto
  google/protobuf/timestamp.proto)
set(PROTO_GRPC
  grpc/health/v1/health.proto grpc/reflection/v1/reflection.proto
  grpc/reflection/v1alpha/reflection.proto)
set(PROTO_ALL ${PROTO_API} ${PROTO_GOOGLE} ${PROTO_WELL_KNOWN} ${PROTO_GRPC})

set(public)
set(derived)
foreach(file IN LISTS PROTO_ALL)
  list(APPEND public ${PROTO_DIR}/${file})
  list(APPEND derived ${PROTO_C_DIR}/${file})
endforeach()

# All copies first: an import must be there when a file that needs it is read.
add_custom_command(OUTPUT ${derived}
  COMMAND ${PYTHON3} ${PROTO_DIR}/derive.py ${PROTO_DIR} ${PROTO_C_DIR} ${PROTO_ALL}
  DEPENDS ${PROTO_DIR}/derive.py ${public} VERBATIM)
foreach(file IN LISTS PROTO_ALL)
  string(REPLACE ".proto" ".pb-c" stem ${file})
  add_custom_command(
    OUTPUT ${PROTO_C_DIR}/${stem}.c ${PROTO_C_DIR}/${stem}.h
    COMMAND ${PROTOC_C} -I${PROTO_C_DIR} --c_out=${PROTO_C_DIR} ${file}
    DEPENDS ${derived} VERBATIM)
  set_source_files_properties(${PROTO_C_DIR}/${stem}.c PROPERTIES COMPILE_OPTIONS -w)
  target_sources(proto PRIVATE ${PROTO_C_DIR}/${stem}.c ${PROTO_C_DIR}/${stem}.h)
endforeach()
target_include_directories(proto SYSTEM PUBLIC ${PROTO_C_DIR})

set(PROTO_SET ${CMAKE_BINARY_DIR}/godwit.fds)
add_custom_command(OUTPUT ${PROTO_SET}
  COMMAND ${PROTOC} -I${PROTO_DIR} --include_imports
    --descriptor_set_out=${PROTO_SET} ${PROTO_ALL}
  DEPENDS ${public} VERBATIM)
configure_file(${PROTO_DIR}/descriptors.c.in ${PROTO_C_DIR}/descriptors.c @ONLY)
set_source_files_properties(${PROTO_C_DIR}/descriptors.c PROPERTIES OBJECT_DEPENDS ${PROTO_SET})
target_sources(proto PRIVATE ${PROTO_C_DIR}/descriptors.c ${PROTO_SET})

# Python stubs for the tests' independent client, in <build>/python: put it on
# PYTHONPATH. Health and reflection lie under the names of their pip packages
# (grpc_health.v1.health_pb2), because "grpc" is the library's own package.
if(GRPC_PYTHON_PLUGIN)
  set(PROTO_PYTHON_DIR ${CMAKE_BINARY_DIR}/python)
  set(PROTO_PYTHON_SOURCE ${CMAKE_BINARY_DIR}/proto-python)
  configure_file(${PROTO_DIR}/grpc/health/v1/health.proto
    ${PROTO_PYTHON_SOURCE}/grpc_health/v1/health.proto COPYONLY)
  configure_file(${PROTO_DIR}/grpc/reflection/v1/reflection.proto
    ${PROTO_PYTHON_SOURCE}/grpc_reflection/v1/reflection.proto COPYONLY)
  configure_file(${PROTO_DIR}/grpc/reflection/v1alpha/reflection.proto
    ${PROTO_PYTHON_SOURCE}/grpc_reflection/v1alpha/reflection.proto COPYONLY)
  add_custom_command(OUTPUT ${PROTO_PYTHON_DIR}/made
    COMMAND ${CMAKE_COMMAND} -E make_directory ${PROTO_PYTHON_DIR}
    COMMAND ${PROTOC} -I${PROTO_DIR} --python_out=${PROTO_PYTHON_DIR}
      --grpc_python_out=${PROTO_PYTHON_DIR}
      --plugin=protoc-gen-grpc_python=${GRPC_PYTHON_PLUGIN}
      ${PROTO_API} ${PROTO_GOOGLE}
    COMMAND ${PROTOC} -I${PROTO_PYTHON_SOURCE} --python_out=${PROTO_PYTHON_DIR}
      --grpc_python_out=${PROTO_PYTHON_DIR}
      --plugin=protoc-gen-grpc_python=${GRPC_PYTHON_PLUGIN}
      grpc_health/v1/health.proto grpc_reflection/v1/reflection.proto
      grpc_reflection/v1alpha/reflection.proto
    COMMAND ${CMAKE_COMMAND} -E touch ${PROTO_PYTHON_DIR}/made
    DEPENDS ${public} VERBATIM)
  add_custom_target(proto_python ALL DEPENDS ${PROTO_PYTHON_DIR}/made)
endif()
