# A real node, called by Python's grpcio and by godwitctl: one ctest per file.
if(TARGET godwitd AND TARGET godwitctl AND TARGET proto_python)
  set(e2e_environment
    GODWITD=$<TARGET_FILE:godwitd> GODWITCTL=$<TARGET_FILE:godwitctl>
    PYTHONPATH=${CMAKE_BINARY_DIR}/python
    GODWIT_TEST_MODEL=${PROJECT_SOURCE_DIR}/assets/models/godwit-tiny)
  if(GODWIT_SANITIZE) # several times slower; fewer deaths, longer waits
    list(APPEND e2e_environment KILLS=5 GODWIT_TEST_CALL_S=240
         GODWIT_TEST_SANITIZED=1)
  endif()
  # Those that fill the machine, or compare times, have it to themselves.
  set(e2e_alone bench cancel collapse overload serve tenants)
  # Of the others some spend most of their time computing: beside another test
  # they do it by one thread.
  set(e2e_one_thread fork paged prefix stored)
  file(GLOB e2e_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/test_*.py)
  foreach(file IN LISTS e2e_files)
    get_filename_component(stem ${file} NAME_WE)
    string(REPLACE "test_" "" stem ${stem})
    # The distribution's own interpreter: another one does not see its grpc.
    add_test(NAME e2e.${stem} COMMAND /usr/bin/python3 -B ${file}
      WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR})
    set(environment ${e2e_environment})
    if(stem IN_LIST e2e_one_thread)
      list(APPEND environment GODWIT_THREADS=1)
    endif()
    set_tests_properties(e2e.${stem} PROPERTIES LABELS e2e TIMEOUT 1200
      ENVIRONMENT "${environment}")
    if(stem IN_LIST e2e_alone)
      set_tests_properties(e2e.${stem} PROPERTIES RUN_SERIAL TRUE)
    endif()
  endforeach()
  # The same with everything in the memory of a device: kernels/apart/apart.h.
  # What is damaged is seen before it gets there, so a few damages show it all;
  # unit.state.snapshot_damage.apart has the others.
  foreach(stem IN ITEMS fork prefix kill)
    add_test(NAME e2e.apart.${stem}
      COMMAND /usr/bin/python3 -B ${CMAKE_CURRENT_LIST_DIR}/test_${stem}.py
      WORKING_DIRECTORY ${CMAKE_CURRENT_LIST_DIR})
    set_tests_properties(e2e.apart.${stem} PROPERTIES LABELS e2e TIMEOUT 1200
      ENVIRONMENT
        "${e2e_environment};GODWIT_BACKEND=apart;GODWIT_THREADS=1;KILLS=5;DAMAGES=flip_few,delete_segments")
  endforeach()
endif()
