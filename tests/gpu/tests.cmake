# Small operators on a GPU: it needs libc alone, and must, as must the checks
# below: build.sh makes them without CMake and without a library.
if(TARGET kernels)
  add_executable(gpu_ops ${PROJECT_SOURCE_DIR}/tests/gpu/gpu_ops.c)
  target_compile_options(gpu_ops PRIVATE ${STRICT})
  target_include_directories(gpu_ops PRIVATE ${PROJECT_SOURCE_DIR})
  add_dependencies(gpu_ops kernels base)
  target_link_libraries(gpu_ops PRIVATE $<TARGET_FILE:kernels>
    $<TARGET_FILE:base> Threads::Threads m ${CMAKE_DL_LIBS})
  add_test(NAME gpu.ops COMMAND gpu_ops apart)
  set_tests_properties(gpu.ops PROPERTIES LABELS unit
    ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
endif()

# Whole models on a GPU (tests/gpu/gpu_model.h), in a program that depends on
# nothing but libc, so that it runs where only a driver is installed; run.sh
# brings it there. Here it is held to work, with the device that is not there.
if(TARGET model)
  set(node ${PROJECT_SOURCE_DIR}/node)
  file(GLOB eval CONFIGURE_DEPENDS ${node}/eval_*.c)
  set(parts ${PROJECT_SOURCE_DIR}/state/memory.c
    ${PROJECT_SOURCE_DIR}/state/states.c
    ${PROJECT_SOURCE_DIR}/state/paging.c ${PROJECT_SOURCE_DIR}/state/pager.c
    ${PROJECT_SOURCE_DIR}/state/paging_sizes.c ${PROJECT_SOURCE_DIR}/state/shelf.c
    ${PROJECT_SOURCE_DIR}/state/snapshot_value.c ${PROJECT_SOURCE_DIR}/state/lineage.c
    ${PROJECT_SOURCE_DIR}/state/store.c ${PROJECT_SOURCE_DIR}/state/session.c
    ${PROJECT_SOURCE_DIR}/proto/frame.c
    ${node}/cmd_check.c ${node}/cmd_eval.c ${node}/golden.c ${node}/golden_cases.c
    ${node}/solo.c ${node}/subcommand.c ${eval})
  file(GLOB gpu_model CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/gpu/gpu_*.c)
  list(FILTER gpu_model EXCLUDE REGEX "/gpu_ops\\.c$")
  add_executable(gpu_model ${gpu_model} ${parts})
  target_compile_options(gpu_model PRIVATE ${STRICT} ${SANITIZED})
  target_include_directories(gpu_model PRIVATE ${PROJECT_SOURCE_DIR})
  foreach(name model kernels base) # not their shared libraries with them
    add_dependencies(gpu_model ${name})
    target_link_libraries(gpu_model PRIVATE $<TARGET_FILE:${name}>)
  endforeach()
  foreach(name jansson pcre2-8 utf8proc xxhash)
    find_library(STATIC_${name} lib${name}.a REQUIRED)
    mark_as_advanced(STATIC_${name})
    target_link_libraries(gpu_model PRIVATE ${STATIC_${name}})
  endforeach()
  target_link_libraries(gpu_model PRIVATE Threads::Threads m ${CMAKE_DL_LIBS})
  # A GPU that goes wrong when it is told to; beside libgodwit_cuda.so.
  add_library(godwit_faulty SHARED ${PROJECT_SOURCE_DIR}/tests/gpu/faulty_cuda.c
    ${PROJECT_SOURCE_DIR}/kernels/apart/fault.c ${PROJECT_SOURCE_DIR}/base/status.c)
  target_compile_options(godwit_faulty PRIVATE ${STRICT})
  target_include_directories(godwit_faulty PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(godwit_faulty PRIVATE ${CMAKE_DL_LIBS})
  set_target_properties(godwit_faulty PROPERTIES BUILD_RPATH "$ORIGIN")
  if(TARGET godwit_cuda) # it loads, and says what this machine lacks
    add_test(NAME gpu.load COMMAND gpu_ops cuda)
    add_test(NAME gpu.archs COMMAND /usr/bin/python3 -B
      ${PROJECT_SOURCE_DIR}/tests/gpu/archs.py
      ${PROJECT_BINARY_DIR}/libgodwit_cuda.so)
    set_tests_properties(gpu.archs PROPERTIES LABELS unit)
    set_tests_properties(gpu.load PROPERTIES LABELS unit
      PASS_REGULAR_EXPRESSION
      "no NVIDIA driver;no GPU;compute capability;driver for CUDA;: 0 of ")
  endif()
  foreach(format "f8;auto" "bf16;int8")
    list(GET format 0 weights)
    list(GET format 1 kv)
    add_test(NAME gpu.exact.${weights}.${kv}
      COMMAND gpu_model exact apart tests/golden/qwen3_5_text
      --schedules 1 --weights ${weights} --kv ${kv}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(gpu.exact.${weights}.${kv} PROPERTIES LABELS unit
      TIMEOUT 1200 ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
  endforeach()
  foreach(name qwen3_5_text qwen3_moe)
    add_test(NAME gpu.exact.${name}
      COMMAND gpu_model exact apart tests/golden/${name}
      --schedules 20 --seconds 100
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(gpu.exact.${name} PROPERTIES LABELS unit TIMEOUT 1200
      ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
  endforeach()
  foreach(name qwen3_5_text qwen3_moe)
    add_test(NAME gpu.exact.policies.${name}
      COMMAND gpu_model exact apart tests/golden/${name}
      --schedules 32 --seconds 100 --policy any
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(gpu.exact.policies.${name} PROPERTIES LABELS unit
      TIMEOUT 1200 ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
  endforeach()
  # A whole node with all in the memory of a device, and with one that fails.
  if(TARGET godwitd AND TARGET godwitctl)
    # Those of one program compare with the same undisturbed node.
    set(parts_of_memory tight full scratch lost)
    foreach(name change policy memory excerpt capped)
      set(parts ${name})
      if(parts_of_${name})
        set(parts ${parts_of_${name}})
      endif()
      add_test(NAME gpu.node.${name}
        COMMAND /usr/bin/python3 -B ${PROJECT_SOURCE_DIR}/tests/gpu/node.py
        --device apart ${CMAKE_BINARY_DIR} ${parts})
      set_tests_properties(gpu.node.${name} PROPERTIES LABELS e2e TIMEOUT 1200
        ENVIRONMENT "${SANITIZER_ENVIRONMENT};GODWIT_THREADS=1")
    endforeach()
  endif()
  # What run.sh promises of limits, exits and its table, with programs that only
  # pretend.
  add_test(NAME gpu.run COMMAND ${PROJECT_SOURCE_DIR}/tests/gpu/test_run.sh)
  set_tests_properties(gpu.run PROPERTIES LABELS unit TIMEOUT 480)
endif()

# The library that goes the way of other GPUs on a Hopper, too: run.sh compares.
if(TARGET godwit_cuda)
  add_cuda_library(${PROJECT_BINARY_DIR}/libgodwit_cuda_sm80.so ${sm80_objects})
  add_custom_target(godwit_cuda_sm80
    DEPENDS ${PROJECT_BINARY_DIR}/libgodwit_cuda_sm80.so)
endif()

# The kernels' own checks and times: run.sh makes them, or brings them along
# (pack.sh). They bring a device of their own in place of the library's.
if(TARGET godwit_cuda AND TARGET kernels)
  file(GLOB checks CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/gpu/check_*.cu
    ${PROJECT_SOURCE_DIR}/tests/gpu/time_*.cu)
  file(GLOB check_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/gpu/*.cuh
    ${PROJECT_SOURCE_DIR}/tests/gpu/*.h)
  set(check_objects ${objects})
  list(FILTER check_objects EXCLUDE REGEX "/unit_device\\.o$")
  set(check_archive ${PROJECT_BINARY_DIR}/cuda/check.a) # they want a few each
  add_custom_command(OUTPUT ${check_archive}
    COMMAND ${CMAKE_COMMAND} -E rm -f ${check_archive}
    COMMAND ${CMAKE_AR} qc ${check_archive} ${check_objects}
    DEPENDS ${check_objects} COMMENT "Collecting kernels" VERBATIM)
  set(programs)
  foreach(file IN LISTS checks)
    get_filename_component(stem ${file} NAME_WE)
    set(ways ${SM90} ${SM80})
    if(stem STREQUAL check_mma) # of wgmma, too
      set(ways ${SM90})
    endif()
    add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/${stem}
      COMMAND ${NVCC} ${ways} -o ${PROJECT_BINARY_DIR}/${stem} ${file} ${check_archive}
      $<TARGET_FILE:kernels> $<TARGET_FILE:base> -ldl
      DEPENDS ${file} ${check_headers} ${check_archive} kernels base
      COMMENT "Building ${stem}" VERBATIM)
    list(APPEND programs ${PROJECT_BINARY_DIR}/${stem})
  endforeach()
  set(beside ${PROJECT_BINARY_DIR}/libgodwit_beside.so) # for time_torch.py
  set(beside_source ${PROJECT_SOURCE_DIR}/tests/gpu/beside.cu)
  add_custom_command(OUTPUT ${beside}
    COMMAND ${NVCC} ${SM90} ${SM80} -shared -Xlinker=-z,defs -o ${beside}
    ${beside_source} ${check_archive}
    DEPENDS ${beside_source} ${check_headers} ${check_archive}
    COMMENT "Building libgodwit_beside.so" VERBATIM)
  add_custom_target(gpu_checks DEPENDS ${programs} ${beside})
endif()
